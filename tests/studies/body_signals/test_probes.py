"""Linear probes, pooling and features made by hand."""

from __future__ import annotations

import math

import torch

from bayes_adapters import Frames
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.body_signals.probes import fit_probe, hand_features, pool
from tests.refusals import refuses


def test_a_probe_is_at_its_optimum() -> None:
    x, y = torch.randn(200, 3) * torch.tensor([1.0, 5.0, 0.1]), (torch.rand(200) < 0.3).long()
    probe = fit_probe(x, y, x, y, l2=[0.05])
    residual = probe.probs(x) - y
    assert abs(float(residual.mean())) < 1e-5  # the bias is not penalised
    gradient = probe.standardised(x).T @ residual / len(y) + 0.05 * probe.weight
    assert gradient.abs().max() < 1e-5


def test_the_weight_is_chosen_on_held_out_people() -> None:
    x, y = torch.randn(40, 30), torch.arange(40) % 2
    noise = torch.randn(200, 30), torch.arange(200) % 2
    assert fit_probe(x, y, *noise).l2 == 10.0
    assert fit_probe(x, y, x, y).l2 == 1e-3
    with refuses(DataError, [0]):
        fit_probe(x, torch.zeros(40).long(), x, y)
    with refuses(ConfigError, "l2", (0.0,)):
        fit_probe(x, y, x, y, l2=[0.0])


def test_pooling_reads_real_frames_only() -> None:
    values = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.equal(pool(Frames(values, mask)), torch.tensor([[2.0, 1.0], [0.0, 0.0]]))


def test_hand_features_of_a_ramp_and_of_a_zigzag() -> None:
    ramp = torch.linspace(0, 2, 5)[None, :, None]
    zigzag = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[None, :, None]
    expected = torch.tensor([1.0, math.sqrt(5 / 8), 0.0, 2.0, 2.0, 0.5, 0.0])
    assert torch.allclose(hand_features(ramp)[0], expected, atol=1e-6)
    assert torch.allclose(hand_features(zigzag)[0, [4, 5, 6]], torch.tensor([0.0, 2.0, 4.0]), atol=1e-6)
    assert hand_features(torch.randn(2, 960, 3)).shape == (2, 21)
