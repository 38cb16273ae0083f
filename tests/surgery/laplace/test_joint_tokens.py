"""Where a density reads the outputs of several tokens together, its curvature is of all of them together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import AdapterModel, Batch, Categorical, Gaussian, Tagging, predict
from bayes_adapters.guides import Delta
from bayes_adapters.likelihoods import Likelihood, Masks, Tasks
from bayes_adapters.models import LoRA
from bayes_adapters.surgery._curvature import bend
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.last_layer import last_layer_laplace
from tests.helpers import VOCAB, bert, fill_B, vit

SIDE = 8


def masks(classes: int = 1, **options: Any) -> tuple[AdapterModel, Batch]:
    """A mask of 8 × 8 pixels between 2 × 2 cells, under a vision transformer of 4 patches and a first token."""
    torch.manual_seed(0)
    likelihood = Masks((2, 2), (SIDE, SIDE), classes=classes, skip=1, **options)
    model = fill_B(LoRA(vit(1), likelihood, targets="all-linear", rank=2))
    return model, Batch({"pixel_values": torch.randn(3, 3, 16, 16)}, torch.randint(max(2, classes), (3, SIDE, SIDE)))


def tokens(likelihood: Likelihood, targets: Any) -> tuple[AdapterModel, Batch]:
    torch.manual_seed(0)
    model = fill_B(LoRA(bert(), likelihood, targets=["query", "value"], rank=2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    return model, Batch({"input_ids": torch.randint(1, VOCAB, (3, 4)), "attention_mask": mask}, targets)


TAGS = torch.tensor([[0, 1, 2, 1], [1, 1, 0, -100], [2, -100, -100, 0]])
CASES: dict[str, Any] = {
    "mask": masks,
    "mask of three classes": lambda: masks(3),
    "mask with Dice": lambda: masks(dice_weight=2.0),
    "finer cells": lambda: masks(detail=2),
    "one pixel per cell": lambda: masks(detail=4),
    "tags": lambda: tokens(Tagging(3), TAGS),
    "tags and a class": lambda: tokens(
        Tasks({"tags": Tagging(3), "class": Categorical(2)}), {"tags": TAGS, "class": torch.tensor([0, 1, 1])}
    ),
    "tags and a number, weighed": lambda: tokens(
        Tasks({"number": Gaussian(), "tags": Tagging(3)}, {"tags": 0.3}),
        {"tags": TAGS, "number": torch.tensor([0.1, 2.0, -1.0])},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_bends_is_the_hessian_of_all_outputs_of_an_example(case: str) -> None:
    model, batch = CASES[case]()
    outputs = torch.randn(batch.size, 5 if "pixel_values" in batch.inputs else 4, model.likelihood.num_outputs)
    for place in range(batch.size):
        one, own = batch[place : place + 1], outputs[place : place + 1]

        def loss(flat: Tensor, one: Batch = one, shape: torch.Size = own.shape) -> Tensor:
            fn = model.likelihood_of(flat.reshape(shape), one)
            return -fn.log_prob(model.likelihood.observation(fn, one.targets)).sum()

        exact = torch.autograd.functional.hessian(loss, own.flatten()).double()
        values, vectors = torch.linalg.eigh(0.5 * (exact + exact.T))
        score, slope, columns = bend(model, own, one)
        found = sum((torch.outer(c, c) for c in columns), torch.zeros_like(exact))
        torch.testing.assert_close(found, (vectors * values.clamp_min(0.0)) @ vectors.T, rtol=1e-4, atol=1e-5)
        gradient = torch.autograd.functional.jacobian(loss, own.flatten())
        torch.testing.assert_close(slope, -gradient, rtol=1e-4, atol=1e-5)
        assert score == pytest.approx(-float(loss(own.flatten()).detach()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:The adapter is not at an optimum")
@pytest.mark.parametrize("last", [True, False])
def test_a_task_without_a_label_changes_no_posterior(last: bool) -> None:
    """The class reads the mean of all tokens, alone or beside tags that nobody knows."""
    labels = torch.tensor([0, 1, 1])
    alone, batch = tokens(Tasks({"class": Categorical(2)}), {"class": labels})
    both, _ = tokens(Tasks({"class": Categorical(2), "tags": Tagging(3)}), None)
    unknown = {"class": labels, "tags": torch.full((3, 4), -100)}
    with torch.no_grad():
        both.head.get_parameter("weight")[:2] = alone.head.get_parameter("weight")
        both.head.get_parameter("bias")[:2] = alone.head.get_parameter("bias")
    found = []
    for model, targets in ((alone, {"class": labels}), (both, unknown)):
        data = replace(batch, targets=targets)
        if last:
            new, guide, log = last_layer_laplace(model, Delta(model), data, prior_precision=1.0)
        else:
            new, guide, log = laplace(model, Delta(model), data, prior_precision=1.0, structure="full")
        answer = predict(new, guide, replace(batch, targets=None), num_samples=500)["class"]
        found.append((log.determined, answer.epistemic))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4), "the directions that the data determine"
    assert float(found[0][1].min()) > 1e-4
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0.25, atol=0.0)
