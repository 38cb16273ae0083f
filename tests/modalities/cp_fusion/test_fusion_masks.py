"""Masked frames count nowhere, and a missing modality is replaced by its null value."""

from __future__ import annotations

import math

import pytest
import torch

from bayes_adapters import Frames
from bayes_adapters.errors import DataError
from bayes_adapters.models.multiplicative.factors import FusionFactors, FusionRule
from bayes_adapters.models.multiplicative.fusion import cp_fusion, cp_fusion_pooled, cp_fusion_residual
from bayes_adapters.models.multiplicative.module import CPFusion
from tests.modalities.cp_fusion.parts import LENGTHS, RULES, drawn, full, gate_rows, inputs, name_of, same, tensors
from tests.refusals import refuses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_masked_frames_count_nowhere_bit_for_bit(rule: FusionRule, dtype: torch.dtype) -> None:
    """Their content, and masked frames put before, between and after the real ones, change no bit of the output."""
    factors = drawn(gate=gate_rows(rule))
    lengths = {name: length + 13 for name, length in LENGTHS.items()}
    wide = inputs(lengths, rows=4)
    tight: dict[str, Frames] = {}
    for name, length in LENGTHS.items():
        counts = [length, 1, 2, 0 if name == "audio" else 3]
        values, mask = torch.zeros(4, length, 6), torch.zeros(4, length, dtype=torch.bool)
        wide[name].mask.fill_(False)
        for b, count in enumerate(counts):
            places = torch.randperm(lengths[name])[:count].sort().values
            wide[name].mask[b, places] = True
            values[b, :count], mask[b, :count] = wide[name].values[b, places], True
        tight[name] = Frames(values.to(dtype), mask)
        wide[name] = Frames(wide[name].values.to(dtype), wide[name].mask)
    other = {
        name: Frames(torch.where(f.mask[..., None], f.values, 10 * torch.randn_like(f.values)), f.mask)
        for name, f in wide.items()
    }
    outs = [cp_fusion(x, factors, rule) for x in (tight, wide, other)]
    if isinstance(outs[0], Frames):
        assert same(outs[0], outs[1])
        assert same(outs[0], outs[2])
        return
    real = [
        {k: f.values[x[k].mask] for k, f in out.items()}  # type: ignore[union-attr]
        for x, out in zip((tight, wide, other), outs, strict=True)
    ]
    for name in LENGTHS:
        assert torch.equal(real[0][name], real[1][name])
        assert torch.equal(real[0][name], real[2][name])
        assert torch.equal(outs[2][name].values[~other[name].mask], other[name].values[~other[name].mask])
        assert torch.equal(outs[2][name].mask, other[name].mask)
        assert not torch.equal(real[0][name], tight[name].values[tight[name].mask]), "something must have been added"


def test_masked_frames_get_and_pass_no_gradient() -> None:
    x, factors = inputs(dtype=torch.float64), drawn()
    x["audio"].mask[:, 3:] = False
    x["audio"].values[:, 3:] = math.nan
    x["audio"].values.requires_grad_()
    cp_fusion_pooled(x, factors, FusionRule()).values.sum().backward()
    grad = x["audio"].values.grad
    assert grad is not None
    assert grad[:, 3:].abs().max() == 0
    assert grad[:, :3].abs().min() > 0


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    factors = drawn(gate=3)
    x = inputs(dtype=torch.float64)
    x["text"].mask[0, 2:] = False
    together = cp_fusion_residual(x, factors, FusionRule("residual"))
    for b in range(3):
        alone = cp_fusion_residual({k: f[b : b + 1] for k, f in x.items()}, factors, FusionRule("residual"))
        for name in x:
            torch.testing.assert_close(alone[name].values[0], together[name].values[b], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_null_value_starts_at_ones_and_leaves_the_others_product(normalise: bool) -> None:
    fusion = CPFusion(LENGTHS, 6, rank=3, normalise=normalise)
    factors = fusion.factors()
    assert all(bool((m.null == 1).all()) for m in factors.modalities.values() if m.null is not None)
    assert len(fusion.null) == 3
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    x = inputs(rows=4)
    x["audio"].mask[1] = False
    out = fusion(x)
    two = FusionFactors({k: m for k, m in factors.modalities.items() if k != "audio"}, factors.gate)
    others = cp_fusion_pooled({k: x[k] for k in ("text", "vision")}, two, fusion.rule)
    torch.testing.assert_close(out.values[1], others.values[1])
    assert not torch.allclose(out.values[0], others.values[0], atol=1e-3)


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_left_out_is_the_same_as_masked_in_every_row(rule: FusionRule) -> None:
    factors = drawn(gate=gate_rows(rule))
    x = inputs(rows=4)
    x["audio"].mask.fill_(False)
    masked, left_out = cp_fusion(x, factors, rule), cp_fusion({k: x[k] for k in ("text", "vision")}, factors, rule)
    if isinstance(masked, dict):
        assert torch.equal(masked.pop("audio").values, x["audio"].values), "nothing to update"
    assert same(masked, left_out)
    for value in tensors(left_out).values():
        assert bool(value.isfinite().all())


def test_the_null_value_learns_from_the_rows_that_miss_the_modality() -> None:
    fusion = CPFusion(LENGTHS, 6, rank=3)
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    x = inputs(rows=4)
    x["audio"].mask[1] = False
    fusion(x).values.square().sum().backward()
    text, audio, _ = [null.grad for null in fusion.null]
    assert audio is not None
    assert audio.abs().min() > 0
    assert text is not None
    assert text.abs().max() == 0


def test_without_a_null_value_a_missing_modality_is_an_error() -> None:
    factors = drawn(null=False)
    x = inputs()
    x["audio"].mask[1] = False
    with refuses(DataError, [1], "'audio'", "null=True"):
        cp_fusion(x, factors)
    with refuses(DataError, [0, 1, 2], "'vision'", "null=True"):
        cp_fusion({k: x[k] for k in ("text", "audio")} | {"audio": full(x["audio"].values)}, factors)


def test_rows_that_miss_everything_get_the_product_of_null_values() -> None:
    factors = drawn()
    x = inputs(rows=1, dtype=torch.float64)
    for frames in x.values():
        frames.mask.fill_(False)
    nulls = [m.null for m in factors.modalities.values() if m.null is not None]
    expected = (nulls[0] * nulls[1] * nulls[2]).expand(1, 3, 6)
    torch.testing.assert_close(cp_fusion_pooled(x, factors, FusionRule()).values, expected * math.sqrt(2))
