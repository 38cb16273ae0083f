"""Overlaps of boxes by hand, on a grid of points, and at the edges where ratios of areas have no value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from bayes_adapters.data.boxes import from_corners, giou, iou, to_corners

UNIT = [0.5, 0.5, 1.0, 1.0]


def corners(*numbers: float) -> Tensor:
    return from_corners(torch.tensor(numbers, dtype=torch.float64))


@pytest.mark.parametrize(
    ("a", "b", "shared", "expected"),
    [
        ((0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.5, 0.5), 1.0, 1.0),
        ((0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5), 1 / 3, 1 / 3),  # C is their union
        ((0.0, 0.0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), 1 / 7, 1 / 7 - (9 - 7) / 9),  # in sixteenths
        ((0.0, 0.0, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75), 0.25, 0.25),  # one inside the other
        ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), 0.0, 0.0),  # an edge in common
        ((0.0, 0.0, 0.25, 0.25), (0.75, 0.75, 1.0, 1.0), 0.0, -0.875),
    ],
)
def test_pairs_by_hand(a: tuple[float, ...], b: tuple[float, ...], shared: float, expected: float) -> None:
    one, other = corners(*a), corners(*b)
    for first, second in ((one, other), (other, one)):
        assert iou(first, second).item() == pytest.approx(shared)
        assert giou(first, second).item() == pytest.approx(expected)


def test_areas_are_counts_of_points() -> None:
    ends = torch.rand(30, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
    boxes = from_corners(ends.flatten(1))
    points = torch.cartesian_prod(*[(torch.arange(200) + 0.5) / 200] * 2)
    inside = ((points > ends[:, :1]) & (points < ends[:, 1:])).all(-1).float()  # (box, point)
    a, b = inside[:15], inside[15:]
    found = (a * b).sum(1) / torch.maximum(a, b).sum(1)
    torch.testing.assert_close(iou(boxes[:15], boxes[15:]), found, rtol=0, atol=0.03)
    assert (found > 0).sum() > 3


def test_corners_there_and_back() -> None:
    pixels = torch.tensor([[[3.0, 5.0, 40.0, 21.0]], [[0.0, 0.0, 64.0, 48.0]]])
    boxes = from_corners(pixels, size=(48, 64))
    torch.testing.assert_close(boxes[1, 0], torch.tensor(UNIT))
    torch.testing.assert_close(to_corners(boxes, size=(48, 64)), pixels)
    torch.testing.assert_close(boxes[0, 0, 3], torch.tensor(16 / 48))


@pytest.mark.parametrize("measure", [iou, giou])
def test_gradients_are_those_of_differences(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    a = torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.2, 0.2, 0.1, 0.1]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.5, 0.4, 0.5, 0.3], [0.8, 0.7, 0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    assert gradcheck(measure, (a, b))
    slope = torch.autograd.grad(measure(a, b)[1], a)[0][1, 0]
    assert slope == 0 if measure is iou else slope > 0  # towards a box that it does not meet


def test_empty_boxes_have_no_nan() -> None:
    points = torch.tensor(
        [UNIT, [0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.3, 0.0], [0.5, 0.5, -0.2, 0.4], [0.5, 0.5, 1e-22, 1e-22]]
    )
    for a in points:
        for b in points:
            pair = [a.clone().requires_grad_(), b.clone().requires_grad_()]
            for measure in (iou, giou):
                found = measure(*pair)
                assert found.item() == 1.0 if bool((a == points[0]).all() and (b == points[0]).all()) else found <= 0
                assert all(g.isfinite().all() for g in torch.autograd.grad(found, pair))
    assert giou(points[0], points[1]) == 0.0  # nothing of C lies outside of the union
    assert giou(points[1], torch.tensor([0.1, 0.1, 0.0, 0.0])) == -1.0
