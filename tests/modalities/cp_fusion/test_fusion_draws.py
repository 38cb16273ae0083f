"""Factors from outside, with draws in front."""

from __future__ import annotations

import pytest
import torch

from bayes_adapters.models.multiplicative.factors import FusionFactors, FusionRule, ModalityFactors
from bayes_adapters.models.multiplicative.fusion import cp_fusion
from tests.modalities.cp_fusion.parts import LENGTHS, RULES, drawn, gate_rows, inputs, name_of, same, tensors


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_draws_of_the_factors_are_folded_into_the_rows(rule: FusionRule) -> None:
    """Draws (2, 3) of some factors and none of others equal six calls with one draw each, rows in the order [S, B]."""
    factors = drawn(LENGTHS, 2, 3, gate=gate_rows(rule))
    still = drawn(gate=gate_rows(rule))
    factors = FusionFactors(dict(factors.modalities) | {"text": still.modalities["text"]}, factors.gate)
    x = inputs(rows=12, dtype=torch.float64)
    x["audio"].mask[3] = False
    x["vision"].mask[5, 2:] = False
    together = tensors(cp_fusion(x, factors, rule))
    assert factors.draws == (2, 3)
    for s in range(6):
        place = (s // 3, s % 3)
        one = {
            name: m
            if name == "text"
            else ModalityFactors(m.down[place], m.bias[place], m.feature[place], m.token[place], m.null[place])  # type: ignore[index]
            for name, m in factors.modalities.items()
        }
        assert factors.gate is not None
        rows = slice(2 * s, 2 * s + 2)
        alone = cp_fusion({k: f[rows] for k, f in x.items()}, FusionFactors(one, factors.gate[place]), rule)
        for name, value in tensors(alone).items():
            torch.testing.assert_close(value, together[name][rows], rtol=1e-10, atol=1e-10)


def test_plates_of_size_one_are_draws_too() -> None:
    one, x = drawn(LENGTHS, 1, 1), inputs(dtype=torch.float64)
    flat = {
        k: ModalityFactors(m.down[0, 0], m.bias[0, 0], m.feature[0, 0], m.token[0, 0])
        for k, m in one.modalities.items()
    }
    assert same(cp_fusion(x, one), cp_fusion(x, FusionFactors(flat)))
