"""Where training starts: at the residual, and from there every tensor learns."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from bayes_adapters.models.multiplicative.factors import Placement
from bayes_adapters.models.multiplicative.module import CPFusion, Init
from tests.modalities.cp_fusion.parts import LENGTHS, inputs, train


def build(init: Init, placement: Placement, lengths: Mapping[str, int] = LENGTHS) -> CPFusion:
    if init is Init.GATED:
        return CPFusion(lengths, 6, rank=3, placement=placement)
    return CPFusion.released(lengths, 6, rank=3, placement=placement, init=init)


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("init", list(Init))
def test_at_the_start_the_output_is_the_residual(init: Init, placement: Placement) -> None:
    x = inputs()
    x["text"].mask[0, 2:] = False
    if init is Init.GATED:
        x["audio"].mask[1] = False
    out = build(init, placement)(x)
    if placement is Placement.RESIDUAL:
        assert all(torch.equal(out[k].values, x[k].values) for k in x)
        return
    for b in range(3):
        real = torch.cat([f.values[b][f.mask[b]] for f in x.values()])
        assert torch.equal(out.values[b], real[:3])


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize(("init", "first"), [(Init.GATED, "gate"), (Init.ONE_ZERO, "token.0")])
def test_one_tensor_learns_at_once_and_all_from_the_second_step(init: Init, first: str, placement: Placement) -> None:
    x = inputs(rows=5)
    if init is Init.GATED:  # null values learn from rows that need them
        for b, frames in enumerate(x.values()):
            frames.mask[b] = False
    fusion = build(init, placement)
    moved = train(fusion, x, steps=3)
    everything = {name for name, _ in fusion.named_parameters()}
    assert moved == [{first}, everything, everything]


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("modalities", [2, 3])
def test_the_released_start_never_learns(modalities: int, placement: Placement) -> None:
    lengths = dict(list(LENGTHS.items())[:modalities])
    fusion = build(Init.RELEASED, placement, lengths)
    before = {k: v.clone() for k, v in fusion.state_dict().items()}
    assert train(fusion, inputs(lengths), steps=5) == [set()] * 5
    assert all(torch.equal(before[k], v) for k, v in fusion.state_dict().items())
    assert fusion.feature[0].std().item() == pytest.approx(1.0, rel=0.2)


def test_starting_scales() -> None:
    fusion = CPFusion({"a": 40, "b": 10}, 64, rank=16, feature_terms=8, token_terms=12, cp="product_of_sums")
    assert fusion.feature[0].std().item() == pytest.approx(1 / math.sqrt(16 * 8), rel=0.05)
    assert fusion.token[0].std().item() == pytest.approx(1 / math.sqrt(40 * 12), rel=0.05)
    assert fusion.token[1].std().item() == pytest.approx(1 / math.sqrt(10 * 12), rel=0.1)
    assert 0.1 < fusion.down[0].abs().max().item() <= 1 / 8
