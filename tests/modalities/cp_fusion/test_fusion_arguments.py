"""Options, sequences and factors are checked, and a configuration rebuilds the module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import Frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.models.multiplicative.factors import FusionFactors, FusionRule, ModalityFactors, Placement
from bayes_adapters.models.multiplicative.fusion import cp_fusion
from bayes_adapters.models.multiplicative.module import CPFusion
from tests.modalities.cp_fusion.parts import LENGTHS, drawn, full, inputs, same
from tests.refusals import refuses


def test_config_rebuilds_the_module() -> None:
    fusion = CPFusion.released(LENGTHS, 6, rank=3, placement="residual")
    again = CPFusion(**fusion.config())
    again.load_state_dict(fusion.state_dict())
    x = inputs()
    assert same(fusion(x), again(x))
    assert "init=one_zero" in repr(fusion)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"lengths": {}}, ("lengths={}",)),
        ({"lengths": {"text": 4}}, ("lengths={'text': 4}",)),
        ({"rank": 0}, ("rank", 1, 0)),
        ({"width": 0}, ("width", 1, 0)),
        ({"lengths": {"text": 4, "audio": 0}}, ("lengths['audio']", 1, 0)),
        (
            {"feature_terms": 2, "token_terms": 3},
            ("cp='sum_of_products'", "feature_terms (2)", "token_terms (3)", "cp='product_of_sums'"),
        ),
        ({"cp": "sum_of_product"}, ("cp", "'sum_of_product'", "'sum_of_products'")),
        ({"placement": "before"}, ("placement", "'before'", "pooled, residual")),
        ({"tokens": "fix"}, ("tokens", "'fix'", "fixed, interpolated")),
        ({"init": "zero"}, ("init", "'zero'", "one_zero")),
        ({"init": "one_zero"}, ("init='one_zero'", "normalise=True", "null=True")),
        ({"init": "released", "null": False}, ("init='released'", "normalise=True", "null=False")),
    ],
)
def test_options_are_checked(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        CPFusion(**({"lengths": LENGTHS, "width": 6} | options))


def test_sequences_are_checked() -> None:
    factors, x = drawn(), inputs()
    cases: list[tuple[dict[str, Frames], type[BaseException], tuple[object, ...]]] = [
        ({}, DataError, (["text", "audio", "vision"],)),
        (x | {"audoi": x["audio"]}, ConfigError, ("'audoi'", "'audio'")),
        (x | {"audio": full(torch.randn(3, 7, 5))}, DataError, ("d = 6", "'audio': (3, 7, 5)")),
        (inputs(width=5), DataError, ("d = 6", "'audio': (3, 7, 5)")),
        (x | {"audio": full(torch.randn(2, 7, 6))}, DataError, ("'audio': (2, 7, 6)",)),
        (inputs(rows=0), DataError, (1, "'audio': (0, 7, 6)")),
    ]
    for sequences, error, facts in cases:
        with refuses(error, *facts):
            cp_fusion(sequences, factors)
    with refuses(DataError, "2 draws", "3 rows"):
        cp_fusion(x, drawn(LENGTHS, 2))


def test_factors_are_checked() -> None:
    factors = drawn()
    text = factors.modalities["text"]
    with refuses(ConfigError, ["text"]):
        FusionFactors({"text": text})
    with refuses(ConfigError, "(rank, width)", (2, 6), (3, 6)):
        FusionFactors({"text": text, "audio": drawn(rank=2).modalities["audio"]})
    with refuses(ConfigError, (2, 6), "(*S, 1, 6)"):
        FusionFactors(factors.modalities, torch.ones(2, 6))
    with refuses(ConfigError, (2,), (3,)):
        FusionFactors({"text": drawn(LENGTHS, 2).modalities["text"], "audio": drawn(LENGTHS, 3).modalities["audio"]})
    with refuses(ConfigError, "cp='sum_of_products'", "cp='product_of_sums'"):
        cp_fusion(
            inputs(),
            FusionFactors(dict(factors.modalities) | {"audio": drawn(terms=3).modalities["audio"]}),
            FusionRule(),
        )


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"bias": torch.zeros(2)}, ("bias (*S, r)", "'bias': (2,)")),
        ({"feature": torch.zeros(2, 3, 5)}, ("feature (*S, R_d, r, d)", "'feature': (2, 3, 5)")),
        ({"feature": torch.zeros(3, 6)}, ("feature (*S, R_d, r, d)", "'feature': (3, 6)")),
        ({"token": torch.zeros(2, 5, 4)}, ("token (*S, R_t, L, r)", "'token': (2, 5, 4)")),
        ({"token": torch.zeros(5, 3)}, ("token (*S, R_t, L, r)", "'token': (5, 3)")),
        ({"null": torch.zeros(5)}, ("null (*S, d)", "'null': (5,)")),
        ({"token": torch.zeros(2, 0, 3)}, (1, "'token': (2, 0, 3)")),
        ({"feature": torch.zeros(0, 3, 6)}, (1, "'feature': (0, 3, 6)")),
        (
            {
                "down": torch.zeros(0, 6),
                "bias": torch.zeros(0),
                "feature": torch.zeros(2, 0, 6),
                "token": torch.zeros(2, 5, 0),
            },
            (1, "'down': (0, 6)"),
        ),
    ],
)
def test_a_modalitys_factors_are_checked(changes: dict[str, Tensor], facts: tuple[object, ...]) -> None:
    """The checks themselves: under the tests' instrumentation the annotations object first."""
    right = drawn().modalities["text"]
    factors = object.__new__(ModalityFactors)
    for name in ("down", "bias", "feature", "token", "null"):
        object.__setattr__(factors, name, changes.get(name, getattr(right, name)))
    with refuses(ConfigError, *facts):
        factors.__post_init__()


@pytest.mark.parametrize("placement", list(Placement))
def test_a_gate_of_the_other_placement_is_refused(placement: Placement) -> None:
    rows = 3 if placement is Placement.POOLED else 1
    with refuses(ConfigError, (rows, 6), f"(*S, {4 - rows}, d)", f"placement={str(placement)!r}"):
        cp_fusion(inputs(), drawn(gate=rows), FusionRule(placement))
