"""With many modalities, normalised products neither explode nor vanish."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from bayes_adapters import Frames
from bayes_adapters.models.multiplicative.factors import CP, Placement
from bayes_adapters.models.multiplicative.module import CPFusion
from tests.modalities.cp_fusion.parts import inputs, tensors


def sizes(fusion: CPFusion, x: Mapping[str, Frames]) -> tuple[float, float, float]:
    """Root mean square of what is added, and the least and largest gradient norm of a tensor, for a unit probe."""
    added = torch.cat([v.flatten() for v in tensors(fusion(x)).values()])
    start = CPFusion(fusion.lengths, fusion.width, placement=fusion.rule.placement)
    delta = added - torch.cat([v.flatten() for v in tensors(start(x)).values()])
    (delta * torch.randn_like(delta)).sum().div(math.sqrt(delta.numel())).backward()
    norms = [p.grad.norm().item() for k, p in fusion.named_parameters() if p.grad is not None and "null" not in k]
    return delta.detach().square().mean().sqrt().item(), min(norms), max(norms)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("cp", list(CP))
@pytest.mark.parametrize("modalities", [2, 7])
def test_normalised_products_neither_explode_nor_vanish(
    modalities: int, cp: CP, placement: Placement, seed: int
) -> None:
    """Stated range: root mean square of what is added in [0.5, 2], every gradient norm in [0.3, 50], gate 1."""
    torch.manual_seed(seed)
    x = inputs({f"m{i}": 10 + 7 * i for i in range(modalities)}, rows=32, width=64)
    fusion = CPFusion(dict.fromkeys(x, 16), 64, cp=cp, placement=placement)
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    size, least, largest = sizes(fusion, x)
    assert 0.5 < size < 2
    assert 0.3 < least <= largest < 50


def test_without_normalisation_seven_modalities_leave_that_range() -> None:
    x = inputs({f"m{i}": 10 + 7 * i for i in range(7)}, rows=32, width=64)
    vanishing = CPFusion(dict.fromkeys(x, 16), 64, normalise=False)
    torch.nn.init.ones_(vanishing.gate)  # type: ignore[arg-type]
    size, _, largest = sizes(vanishing, x)
    assert size < 1e-6
    assert largest < 1e-5
    exploding = CPFusion.released({k: f.values.shape[1] for k, f in x.items()}, 64, init="released")
    for token in exploding.token:
        torch.nn.init.normal_(token)
    size, _, largest = sizes(exploding, x)
    assert size > 1e10
    assert largest > 1e10
