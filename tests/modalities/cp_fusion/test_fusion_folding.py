"""A product of sums folds into one term a factor; a sum of products says more and does not."""

from __future__ import annotations

import pytest
import torch

from bayes_adapters.errors import ConfigError
from bayes_adapters.models.multiplicative.factors import (
    CP,
    FusionFactors,
    FusionRule,
    ModalityFactors,
    Placement,
    Tokens,
)
from bayes_adapters.models.multiplicative.fusion import cp_fusion_pooled
from bayes_adapters.models.multiplicative.module import CPFusion
from tests.modalities.cp_fusion.parts import LENGTHS, drawn, inputs, tensors, train
from tests.refusals import refuses


@pytest.mark.parametrize(
    ("lengths", "width", "rank", "count", "folded"),
    [
        ({"text": 50, "audio": 50, "vision": 50}, 40, 16, 46_128, 1_968 + 1_920 + 2_400),
        ({"image": 197, "text": 50}, 768, 64, 1_074_560, 212_544),
    ],
    ids=["mosi", "food"],
)
def test_parameter_counts(lengths: dict[str, int], width: int, rank: int, count: int, folded: int) -> None:
    fusion = CPFusion.released(lengths, width, rank=rank)
    assert sum(p.numel() for p in fusion.parameters()) == count == fusion.factors().num_elements()
    assert sum(p.numel() for p in fusion.fold().parameters()) == folded


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("tokens", list(Tokens))
def test_folding_keeps_the_function(tokens: Tokens, placement: Placement) -> None:
    fusion = CPFusion(
        LENGTHS, 6, rank=3, feature_terms=8, token_terms=12, cp="product_of_sums", tokens=tokens, placement=placement
    ).double()
    x = inputs(dtype=torch.float64)
    x["audio"].mask[0] = False
    train(fusion, x, steps=3)
    folded = fusion.eval().fold()
    for name, value in tensors(fusion(x)).items():
        torch.testing.assert_close(tensors(folded(x))[name], value, rtol=0, atol=1e-6)
        assert not torch.allclose(value, tensors(CPFusion(LENGTHS, 6, rank=3, placement=placement)(x))[name])
    assert (folded.feature_terms, folded.token_terms, folded.training) == (1, 1, False)
    saved = sum(p.numel() for p in fusion.parameters()) - sum(p.numel() for p in folded.parameters())
    assert saved == 7 * 3 * 3 * 6 + 11 * 3 * sum(LENGTHS.values())


def test_a_sum_of_products_does_not_fold_and_says_why() -> None:
    with refuses(ConfigError, "cp='product_of_sums'", "cp='sum_of_products'"):
        CPFusion(LENGTHS, 6).fold()


def test_the_sum_of_products_says_more_than_the_product_of_sums() -> None:
    """Its Z, as a function of one token factor's terms, is not a function of their sum."""
    x, factors = inputs(dtype=torch.float64), drawn()
    text = factors.modalities["text"]
    moved = torch.stack([text.token[0] + 1.0, text.token[1] - 1.0])
    shifted = ModalityFactors(text.down, text.bias, text.feature, moved, text.null)
    other = FusionFactors(dict(factors.modalities) | {"text": shifted})
    for cp, equal in ((CP.PRODUCT_OF_SUMS, True), (CP.SUM_OF_PRODUCTS, False)):
        rule = FusionRule("pooled", cp, "fixed", normalise=False)
        a, b = cp_fusion_pooled(x, factors, rule).values, cp_fusion_pooled(x, other, rule).values
        assert torch.allclose(a, b) is equal
