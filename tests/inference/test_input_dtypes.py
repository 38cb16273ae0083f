"""Features of a float32 extractor on a backbone in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayes_adapters import Batch, Bernoulli, predict
from bayes_adapters.backbones.placement import in_dtype_of
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import LoRA
from bayes_adapters.training import fit
from tests.helpers import core_model, fill_B, vit, whisper

INPUTS = {"whisper": {"input_features": (4, 8, 20)}, "vit": {"pixel_values": (4, 3, 16, 16)}}
BUILDS = {"whisper": whisper, "vit": vit}


def batch(kind: str, dtype: torch.dtype = torch.float32) -> Batch:
    torch.manual_seed(3)
    inputs = {name: torch.randn(shape).to(dtype) for name, shape in INPUTS[kind].items()}
    return Batch(inputs, torch.tensor([0.0, 1.0, 1.0, 0.0]))


@pytest.mark.parametrize("kind", BUILDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_float32_features_are_cast_to_the_backbones_dtype(kind: str, dtype: torch.dtype) -> None:
    """Torch said: Input type (float) and bias type (c10::BFloat16) should be the same."""
    model = fill_B(LoRA(BUILDS[kind]().to(dtype), Bernoulli(), targets=["q_proj", "v_proj"], rank=2))
    guide = Delta(model)
    found = predict(model, guide, batch(kind))
    assert torch.equal(found.mean, predict(model, guide, batch(kind, dtype)).mean), "as if they had come in it"
    fit(model, guide, batch(kind), epochs=1, progress=False)
    assert {p.dtype for p in model.trainable_parameters().values()} == {torch.float32}, "adapters keep their own"


def test_where_weights_have_several_dtypes_nothing_is_cast() -> None:
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    given = {"x": torch.zeros(1, 2), "ids": torch.zeros(1, 2, dtype=torch.long)}
    assert in_dtype_of(mixed, given)["x"] is given["x"]
    cast = in_dtype_of(mixed[1], given)
    assert [value.dtype for value in cast.values()] == [torch.bfloat16, torch.long]
    assert in_dtype_of(mixed[1], {"ids": given["ids"]})["ids"] is given["ids"]


def test_a_batch_of_ids_is_left_alone() -> None:
    model = core_model("global")
    assert predict(model, MeanField(model), Batch({"input_ids": torch.ones(2, 3, dtype=torch.long)})).mean.shape == (2,)
