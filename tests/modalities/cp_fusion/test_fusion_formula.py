"""The fusion written out by hand, its normalisation, its gradients and its precision."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from bayes_adapters import Frames
from bayes_adapters.models.multiplicative.factors import (
    CP,
    FusionFactors,
    FusionRule,
    ModalityFactors,
    Placement,
    Tokens,
)
from bayes_adapters.models.multiplicative.fusion import (
    RELEASED,
    cp_fusion,
    cp_fusion_pooled,
    cp_fusion_residual,
    modality_factors,
)
from bayes_adapters.models.multiplicative.module import CPFusion
from tests.modalities.cp_fusion.parts import LENGTHS, drawn, full, inputs, same, tensors


def by_hand(x: Mapping[str, Tensor], factors: FusionFactors, sums_inside: bool) -> Tensor:
    """The fusion of one example, written out: (r, d), without gate and residual; fixed tokens."""
    terms = next(iter(factors.modalities.values())).feature.shape[0]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(1 if sums_inside else terms):
        product = torch.ones((), dtype=torch.float64)
        for name, m in factors.modalities.items():
            hidden = gelu(x[name] @ m.down.T + m.bias)
            feature, token = (m.feature.sum(0), m.token.sum(0)) if sums_inside else (m.feature[i], m.token[i])
            product = product * ((hidden @ feature).T @ token)
        total = total + product
    return total.T


@pytest.mark.parametrize("tokens", list(Tokens))
@pytest.mark.parametrize("cp", list(CP))
def test_equals_the_formula_and_interpolation_reduces_to_the_released_form(cp: CP, tokens: Tokens) -> None:
    """At n_m = L_m and without padding both kinds of tokens are the released form with the same matrix."""
    x, factors = inputs(dtype=torch.float64), drawn()
    out = cp_fusion_pooled(x, factors, FusionRule(Placement.POOLED, cp, tokens, normalise=False))
    for b in range(3):
        sequences = {name: frames.values[b] for name, frames in x.items()}
        residual = torch.cat(list(sequences.values()))[:3]
        expected = by_hand(sequences, factors, cp is CP.PRODUCT_OF_SUMS) + residual
        torch.testing.assert_close(out.values[b], expected, rtol=1e-10, atol=1e-10)
    assert bool(out.mask.all())


def test_the_released_rule_is_the_default_of_the_function() -> None:
    assert FusionRule("pooled", "product_of_sums", "fixed", normalise=False) == RELEASED
    x, factors = inputs(dtype=torch.float64), drawn()
    assert same(cp_fusion(x, factors), cp_fusion_pooled(x, factors, RELEASED))


@pytest.mark.parametrize("cp", list(CP))
def test_residual_placement_reads_z_with_each_modalitys_own_token_factor(cp: CP) -> None:
    x, factors = inputs(dtype=torch.float64), drawn(gate=3)
    out = cp_fusion_residual(x, factors, FusionRule(Placement.RESIDUAL, cp, Tokens.FIXED, normalise=False))
    assert factors.gate is not None
    for b in range(3):
        sequences = {name: frames.values[b] for name, frames in x.items()}
        for row, (name, m) in enumerate(factors.modalities.items()):
            delta = torch.zeros_like(sequences[name])
            if cp is CP.PRODUCT_OF_SUMS:
                delta = m.token.sum(0) @ by_hand(sequences, factors, True)
            else:
                for i in range(2):
                    one = {
                        k: ModalityFactors(f.down, f.bias, f.feature[i : i + 1], f.token[i : i + 1])
                        for k, f in factors.modalities.items()
                    }
                    delta = delta + m.token[i] @ by_hand(sequences, FusionFactors(one), False)
            expected = sequences[name] + factors.gate[row] * delta * math.sqrt(LENGTHS[name] / 3)
            torch.testing.assert_close(out[name].values[b], expected, rtol=1e-10, atol=1e-10)


def test_normalised_factors_have_unit_root_mean_square() -> None:
    """With null = 1 for all other modalities, what is added is one modality's normalised factor."""
    factors = drawn(terms=1)
    for m in factors.modalities.values():
        assert m.null is not None
        m.null.fill_(1.0)
    x = {"audio": inputs(dtype=torch.float64)["audio"]}
    out = cp_fusion_pooled(x, factors, FusionRule()).values - x["audio"].values[:, :3]
    torch.testing.assert_close(out.square().mean((1, 2)), torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)


def test_gradients_by_finite_differences() -> None:
    x, factors = inputs(rows=2, dtype=torch.float64), drawn(gate=3)
    x["audio"].mask[0, 2:] = False
    x["vision"].mask[1] = False
    audio = factors.modalities["audio"]
    rule = FusionRule("residual")

    def run(values: Tensor, down: Tensor, feature: Tensor, token: Tensor, gate: Tensor) -> Tensor:
        modality = ModalityFactors(down, audio.bias, feature, token, audio.null)
        replaced = FusionFactors(dict(factors.modalities) | {"audio": modality}, gate)
        sequences = x | {"audio": Frames(values, x["audio"].mask)}
        return torch.cat([f.values for f in cp_fusion_residual(sequences, replaced, rule).values()], 1)

    assert factors.gate is not None
    arguments = (x["audio"].values, audio.down, audio.feature, audio.token, factors.gate)
    assert torch.autograd.gradcheck(run, [a.clone().requires_grad_() for a in arguments])


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_outputs_have_the_inputs_dtype_and_are_computed_in_float32_or_wider(
    dtype: torch.dtype, placement: Placement
) -> None:
    fusion = CPFusion(LENGTHS, 6, rank=3, placement=placement)
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    x = inputs(dtype=dtype)
    wide = {k: full(f.values.double()) for k, f in x.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = tensors(fusion(x))
    for name, expected in tensors(fusion.double()(wide)).items():
        assert out[name].dtype is dtype
        tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 1e-5)
        torch.testing.assert_close(out[name].double(), expected, rtol=2 * tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("cp", list(CP))
def test_factors_by_themselves_multiply_to_the_fusion(cp: CP) -> None:
    """Their product, its terms summed, is what a pooled fusion adds to its residual; a modality left out is null."""
    x, factors = inputs(dtype=torch.float64), drawn(gate=1)
    rule = FusionRule(Placement.POOLED, cp, Tokens.INTERPOLATED, normalise=True)
    for given in (x, {name: frames for name, frames in x.items() if name != "audio"}):
        own = modality_factors(given, factors, rule)
        assert list(own) == list(factors.modalities)
        terms = math.prod(own.values())  # type: ignore[arg-type]
        assert isinstance(terms, Tensor)
        residual = torch.cat([frames.values for frames in given.values()], 1)[:, :3]
        expected = residual + factors.gate * terms.sum(1) / math.sqrt(terms.shape[1])
        torch.testing.assert_close(cp_fusion_pooled(given, factors, rule).values, expected)
    null = factors.modalities["audio"].null
    assert null is not None
    assert bool((own["audio"] == null).all())
