"""Sequences of other lengths than the token factors have rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from bayes_adapters import Frames
from bayes_adapters.errors import DataError
from bayes_adapters.models.multiplicative.factors import FusionRule
from bayes_adapters.models.multiplicative.fusion import cp_fusion, cp_fusion_pooled, cp_fusion_residual
from bayes_adapters.models.multiplicative.module import CPFusion
from tests.modalities.cp_fusion.parts import LENGTHS, drawn, full, inputs, same
from tests.refusals import refuses


@pytest.mark.parametrize("length", [1, 2, 3, 9, 40])
def test_tokens_read_the_curve_at_their_midpoints(length: int) -> None:
    """Against numpy's interpolation, for fewer and for more tokens than knots, in both directions."""
    factors = drawn({"text": 5, "audio": 5})
    text = factors.modalities["text"]
    x = {"text": inputs({"text": length}, rows=1, dtype=torch.float64)["text"]}
    places = (np.arange(length) + 0.5) * 5 / length - 0.5
    matrix = text.token.sum(0).numpy()
    curve = torch.tensor(np.stack([np.interp(places, np.arange(5), column) for column in matrix.T], 1))
    hidden = gelu(x["text"].values[0] @ text.down.T + text.bias)
    z = 5 / length * curve.T @ hidden @ text.feature.sum(0) * factors.modalities["audio"].null
    rule = FusionRule("residual", "product_of_sums", normalise=False)
    out = cp_fusion_residual(x, factors, rule)["text"].values[0] - x["text"].values[0]
    torch.testing.assert_close(out, math.sqrt(5 / 3) * curve @ z)


def test_interpolated_fusion_converges_as_a_curve_is_sampled_more_finely() -> None:
    """Z is an integral over the sequence: the midpoint rule's error falls, and Z does not grow with the length."""
    factors = drawn({"text": 6, "audio": 6})
    rule = FusionRule("pooled", normalise=False)
    waves = torch.randn(4, 6, dtype=torch.float64)

    def fused(n: int) -> Tensor:
        time = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
        curve = torch.sin(time * torch.arange(1, 5) * 2.0) @ waves
        x = full(curve[None])
        return (cp_fusion_pooled({"text": x, "audio": x}, factors, rule).values - curve[:3])[0]

    limit = fused(6000)
    errors = [((fused(n) - limit).norm() / limit.norm()).item() for n in (30, 120, 480)]
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 8, "second order would be a sixteenth"
    assert errors[2] < errors[1] / 8


def test_fixed_tokens_refuse_more_tokens_than_rows_and_take_fewer() -> None:
    factors = drawn()
    short = inputs(dtype=torch.float64)
    short["audio"].mask[:, 4:] = False
    zeroed = short | {"audio": Frames(short["audio"].values[:, :4], short["audio"].mask[:, :4])}
    assert same(cp_fusion(short, factors), cp_fusion(zeroed, factors))
    long = inputs(LENGTHS | {"audio": 8}, dtype=torch.float64)
    with refuses(DataError, "'audio'", 8, 7, "tokens='interpolated'"):
        cp_fusion(long, factors)


def test_fewer_than_r_real_tokens_leave_zeros_in_the_pooled_residual() -> None:
    x = inputs({"text": 2, "audio": 3}, rows=1)
    x["text"].mask[0, 0] = False
    x["audio"].mask[0, :2] = False
    fusion = CPFusion({"text": 4, "audio": 4}, 6, rank=4)
    expected = torch.zeros(1, 4, 6)
    expected[0, 0], expected[0, 1] = x["text"].values[0, 1], x["audio"].values[0, 2]
    assert torch.equal(fusion(x).values, expected)
