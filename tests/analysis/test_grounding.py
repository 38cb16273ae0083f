"""Metrics of boxes and masks against values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters.analysis.grounding import (
    ause,
    box_giou,
    box_iou,
    mask_iou,
    mean_iou,
    overall_iou,
    pavpu,
    precision_at,
)
from bayes_adapters.errors import DataError
from tests.refusals import refuses

FOUND = torch.tensor([[[0.9, 0.8], [0.1, 0.2]], [[0.6, 0.7], [0.9, 0.1]], [[0.0, 0.1], [0.2, 0.3]]])
MEANT = torch.tensor([[[1, 0], [1, 0]], [[1, 1], [-100, 1]], [[0, 0], [0, 0]]])


def test_boxes() -> None:
    a = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0], [0.1, 0.5, 0.2, 1.0]])
    b = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.9, 0.5, 0.2, 1.0]])
    overlaps = box_iou(a, b)
    assert overlaps.tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert box_giou(a, b).tolist() == pytest.approx([1.0, 0.5, -0.6])
    assert mean_iou(overlaps) == pytest.approx(0.5)
    assert precision_at(overlaps.round(decimals=6)) == pytest.approx(2 / 3)
    assert precision_at(overlaps, 0.6) == pytest.approx(1 / 3)


def test_masks() -> None:
    each = mask_iou(FOUND, MEANT)
    assert each.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])  # the pixel of .9 has no label; nothing in nothing
    assert overall_iou(FOUND, MEANT) == pytest.approx(3 / 6)
    assert mask_iou(FOUND, MEANT, threshold=0.85).tolist() == pytest.approx([1 / 2, 0.0, 1.0])
    assert mask_iou(1 - FOUND, MEANT, positive=0).tolist() == pytest.approx([1 / 3, 0.0, 1.0])
    assert math.isnan(overall_iou(FOUND[2:], MEANT[2:]))


def test_pavpu_by_hand() -> None:
    """Five patches of 2 × 2 in a row of 2 × 9 pixels, of which the last has two, and one has no label."""
    right = torch.tensor([[[1, 1, 0, 0, 1, 0, 0, 0, 1], [1, 1, 0, 0, 1, 0, 0, 0, 1]]])
    low, high = 0.1, 0.6
    u = torch.tensor([[low, low, low, low, high, high, high, high, low]]).repeat(2, 1)[None]
    found = pavpu(u, right, threshold=0.3, patch=(2, 2))
    assert found.pavpu == pytest.approx(3 / 5)  # 1 and 5 accurate and certain, 4 neither; 2 sure and wrong, 3 unsure
    assert found.accurate_if_certain == pytest.approx(2 / 3)
    assert found.uncertain_if_inaccurate == pytest.approx(1 / 2)
    known = torch.ones(1, 2, 9, dtype=torch.bool)
    known[..., 2:4] = False
    assert pavpu(u, right, threshold=0.3, patch=(2, 2), known=known).pavpu == pytest.approx(3 / 4)
    known[..., 5] = False  # the third patch: two pixels are left, both right
    assert pavpu(u, right, threshold=0.3, patch=(2, 2), known=known, accurate=1.0).pavpu == pytest.approx(3 / 4)
    nothing = pavpu(u, torch.ones_like(right), threshold=0.0, patch=(2, 2))
    assert nothing.pavpu == 0.0
    assert math.isnan(nothing.accurate_if_certain)
    assert math.isnan(nothing.uncertain_if_inaccurate)


def test_ause_by_hand() -> None:
    error = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert ause(error, error) == 0.0
    assert ause(10 * error - 7, error) == 0.0
    # the rest after taking away 3, 2, 1, 0 pixels, from the back: 0, 1/2, 1, 3/2 by error, and 3, 5/2, 2, 3/2 reversed
    assert ause(-error, error) == pytest.approx(((3 + 2.5 + 2 + 1.5) - (0 + 0.5 + 1 + 1.5)) / 4 / 1.5)
    assert ause(torch.zeros(2, 2), error) == pytest.approx((1.5 - 0.75) / 1.5)  # ties are averaged
    assert ause(torch.rand(4), torch.zeros(4)) == 0.0
    u, e = torch.rand(500, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 500)
    curve, oracle = (torch.stack([e[order[:k]].mean() for k in range(1, 501)]) for order in (u.argsort(), e.argsort()))
    assert ause(u, e) == pytest.approx(float((curve - oracle).mean() / e.mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: box_iou(torch.zeros(2, 3, 4), torch.zeros(3, 4)), ("(2, 3, 4)", "(3, 4)")),
        (lambda: box_iou(torch.tensor([[0.5, 0.5, -0.1, 0.2]]), torch.zeros(1, 4)), ("negative", "from_corners")),
        (lambda: box_giou(torch.full((1, 4), math.nan), torch.zeros(1, 4)), ("finite",)),
        (lambda: mask_iou(FOUND, MEANT[:2]), ("(3, 2, 2)", "(2, 2, 2)")),
        (lambda: mask_iou(3 * FOUND, MEANT), ("P(y = 1)", 2.7)),
        (lambda: mean_iou(FOUND), ("(N,)", "(3, 2, 2)")),
        (lambda: pavpu(FOUND, MEANT[:1], threshold=0.1), ("(3, 2, 2)", "(1, 2, 2)")),
        (lambda: pavpu(FOUND, MEANT, threshold=0.1), ("correct", "0/1")),
        (lambda: pavpu(FOUND, MEANT == 1, threshold=0.1, patch=(0, 2)), ("patch", "(0, 2)")),
        (lambda: ause(FOUND, MEANT[:1]), ("uncertainty", "error")),
        (lambda: ause(torch.zeros(2, 3), torch.ones(3, 2)), ("(2, 3)", "(3, 2)")),
        (lambda: ause(torch.zeros(2), torch.tensor([0.5, -1.0])), ("negative", -1, ".abs()")),
    ],
)
def test_what_is_refused(call: Any, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        call()


def test_without_a_labelled_pixel_nothing_is_known() -> None:
    found = pavpu(FOUND, MEANT == 1, threshold=0.1, known=torch.zeros_like(MEANT, dtype=torch.bool))
    assert all(math.isnan(number) for number in found)


def test_draws_and_gradients_do_not_matter() -> None:
    probs: Tensor = FOUND.clone().requires_grad_()
    assert not mask_iou(probs, MEANT).requires_grad
    assert not box_iou(torch.rand(2, 4).requires_grad_(), torch.rand(2, 4)).requires_grad
