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


def test_config_rebuilds_the_module() -> None:
    fusion = CPFusion.released(LENGTHS, 6, rank=3, placement="residual")
    again = CPFusion(**fusion.config())
    again.load_state_dict(fusion.state_dict())
    x = inputs()
    assert same(fusion(x), again(x))
    assert "init=one_zero" in repr(fusion)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": {}}, r"at least two modalities; got lengths=\{\}"),
        ({"lengths": {"text": 4}}, r"at least two modalities; got lengths=\{'text': 4\}"),
        ({"rank": 0}, "rank must be a whole number of at least 1; got 0"),
        ({"width": 0}, "width must be"),
        ({"lengths": {"text": 4, "audio": 0}}, r"lengths\['audio'\] must be"),
        ({"feature_terms": 2, "token_terms": 3}, r"feature_terms \(2\) and token_terms \(3\) must be equal"),
        ({"cp": "sum_of_product"}, "Did you mean 'sum_of_products'"),
        ({"placement": "before"}, "Unknown placement 'before'"),
        ({"tokens": "fix"}, "Unknown tokens 'fix'"),
        ({"init": "zero"}, "Unknown init 'zero'"),
        ({"init": "one_zero"}, "needs normalise=False and null=False; got normalise=True and null=True"),
        ({"init": "released", "null": False}, "got normalise=True and null=False"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CPFusion(**({"lengths": LENGTHS, "width": 6} | options))


def test_sequences_are_checked() -> None:
    factors, x = drawn(), inputs()
    cases: list[tuple[dict[str, Frames], type[Exception], str]] = [
        ({}, DataError, "There is no sequence to fuse"),
        (x | {"audoi": x["audio"]}, ConfigError, "No factors for the modality 'audoi'.*Did you mean 'audio'"),
        (x | {"audio": full(torch.randn(3, 7, 5))}, DataError, r"as wide as the factors, d = 6.*'audio': \(3, 7, 5\)"),
        (inputs(width=5), DataError, "as wide as the factors, d = 6"),
        (x | {"audio": full(torch.randn(2, 7, 6))}, DataError, r"same number of rows.*'audio': \(2, 7, 6\)"),
        (inputs(rows=0), DataError, "at least 1"),
    ]
    for sequences, error, message in cases:
        with pytest.raises(error, match=message):
            cp_fusion(sequences, factors)
    with pytest.raises(DataError, match="The factors hold 2 draws and the sequences 3 rows"):
        cp_fusion(x, drawn(LENGTHS, 2))


def test_factors_are_checked() -> None:
    factors = drawn()
    text = factors.modalities["text"]
    with pytest.raises(ConfigError, match=r"at least two modalities; got \['text'\]"):
        FusionFactors({"text": text})
    with pytest.raises(ConfigError, match="same rank and the same width"):
        FusionFactors({"text": text, "audio": drawn(rank=2).modalities["audio"]})
    with pytest.raises(ConfigError, match=r"The gate has shape \(2, 6\); it must be \(\*S, 1, 6\)"):
        FusionFactors(factors.modalities, torch.ones(2, 6))
    with pytest.raises(ConfigError, match="draws of the factors do not broadcast"):
        FusionFactors({"text": drawn(LENGTHS, 2).modalities["text"], "audio": drawn(LENGTHS, 3).modalities["audio"]})
    with pytest.raises(ConfigError, match="all need the same number of terms"):
        cp_fusion(
            inputs(),
            FusionFactors(dict(factors.modalities) | {"audio": drawn(terms=3).modalities["audio"]}),
            FusionRule(),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": torch.zeros(2)}, r"with one r and one d; got .*'bias': \(2,\)"),
        ({"feature": torch.zeros(2, 3, 5)}, "with one r and one d"),
        ({"feature": torch.zeros(3, 6)}, "with one r and one d"),
        ({"token": torch.zeros(2, 5, 4)}, "with one r and one d"),
        ({"token": torch.zeros(5, 3)}, "with one r and one d"),
        ({"null": torch.zeros(5)}, "with one r and one d"),
        ({"token": torch.zeros(2, 0, 3)}, "must be at least 1"),
        ({"feature": torch.zeros(0, 3, 6)}, "must be at least 1"),
        (
            {
                "down": torch.zeros(0, 6),
                "bias": torch.zeros(0),
                "feature": torch.zeros(2, 0, 6),
                "token": torch.zeros(2, 5, 0),
            },
            "rank, width, terms and length must be at least 1",
        ),
    ],
)
def test_a_modalitys_factors_are_checked(changes: dict[str, Tensor], message: str) -> None:
    """The checks themselves: under the tests' instrumentation the annotations object first."""
    right = drawn().modalities["text"]
    factors = object.__new__(ModalityFactors)
    for name in ("down", "bias", "feature", "token", "null"):
        object.__setattr__(factors, name, changes.get(name, getattr(right, name)))
    with pytest.raises(ConfigError, match=message):
        factors.__post_init__()


@pytest.mark.parametrize("placement", list(Placement))
def test_a_gate_of_the_other_placement_is_refused(placement: Placement) -> None:
    rows = 3 if placement is Placement.POOLED else 1
    with pytest.raises(ConfigError, match=rf"The gate has shape \({rows}, 6\); this placement needs"):
        cp_fusion(inputs(), drawn(gate=rows), FusionRule(placement))
