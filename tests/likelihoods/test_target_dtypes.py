"""Class numbers of any whole type: what a PNG's mask or a NumPy array has is accepted, and scored alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Categorical, Tagging
from bayes_adapters.errors import DataError
from bayes_adapters.likelihoods import Candidates, Likelihood, Masks, MultiLabel, NegativeBinomial, Ordinal, Poisson
from tests.refusals import refuses

CASES: dict[str, tuple[Likelihood, torch.Size, torch.Tensor]] = {
    "mask": (Masks((2, 2), (4, 4)), torch.Size([3, 4, 1]), torch.randint(2, (3, 4, 4))),
    "mask with Dice": (Masks((2, 2), (4, 4), dice_weight=2.0), torch.Size([3, 4, 1]), torch.randint(2, (3, 4, 4))),
    "mask of classes": (Masks((2, 2), (4, 4), classes=3), torch.Size([3, 4, 3]), torch.randint(3, (3, 4, 4))),
    "tagging": (Tagging(3), torch.Size([3, 4, 3]), torch.randint(3, (3, 4))),
    "classes": (Categorical(3), torch.Size([3, 3]), torch.tensor([0, 2, 1])),
    "ordinal": (Ordinal(3), torch.Size([3, 1]), torch.tensor([0, 2, 1])),
    "counts": (Poisson(), torch.Size([3, 1]), torch.tensor([0, 7, 1])),
    "dispersed counts": (NegativeBinomial(), torch.Size([3, 1]), torch.tensor([0, 7, 1])),
    "lists": (Candidates(), torch.Size([3, 1]), torch.tensor([[0, 1], [0, 0], [0, 0]])),
}


def score(likelihood: Likelihood, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    likelihood.accept(targets)
    of: Any = likelihood.distribution if outputs.dim() == 3 else lambda f: likelihood.of_tokens(f, None)
    fn = of(outputs)
    found: torch.Tensor = fn.log_prob(likelihood.observation(fn, targets)).detach()
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("case", CASES)
def test_every_whole_type_is_scored_alike(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    likelihood, shape, targets = CASES[case]
    outputs = torch.randn(2, *shape)
    torch.testing.assert_close(score(likelihood, outputs, targets.to(dtype)), score(likelihood, outputs, targets))


def test_a_byte_of_156_is_no_missing_label() -> None:
    """−100 as a byte is 156, which a comparison in bytes would take for a label that is not there."""
    masks = Masks((2, 2), (4, 4), classes=200)
    outputs = torch.randn(1, 1, 4, 200)
    pixels = torch.full((1, 4, 4), 156)
    torch.testing.assert_close(score(masks, outputs, pixels.to(torch.uint8)), score(masks, outputs, pixels))
    assert float(score(masks, outputs, pixels)) < 0
    with refuses(DataError, 156):
        Masks((2, 2), (4, 4), classes=3).accept(pixels.to(torch.uint8))
    with refuses(DataError, 156):
        Tagging(3).accept(pixels[0].to(torch.uint8))


def test_labels_of_several_kinds_are_floating_point() -> None:
    with refuses(DataError, torch.uint8):
        MultiLabel(2).accept(torch.ones(3, 2, dtype=torch.uint8))
