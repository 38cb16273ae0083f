"""A model whose posterior over one core is a Gaussian in closed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from bayes_adapters import Batch, Gaussian
from bayes_adapters.models import StochasticCore
from tests.helpers import Linear


class Conjugate(NamedTuple):
    """The model, its data, and the exact posterior N(mean, precision⁻¹) of the entries of E."""

    model: StochasticCore
    batch: Batch
    mean: Tensor
    precision: Tensor


def conjugate(rank: int = 2) -> Conjugate:
    """One adapted layer whose output is linear in E, noise fixed at 0.5, prior N(0, 1).

    f(E) = f(0) + J vec E: the precision is JᵀJ/σ² + I, the mean precision⁻¹ Jᵀ(y − f(0))/σ².
    """
    torch.manual_seed(1)
    options = {"granularity": "global", "rank": rank, "alpha": rank, "num_data": 12}
    prior = pyro.distributions.Normal(0.0, 1.0)
    model = StochasticCore(Linear(), Gaussian(math.log(0.5)), targets=["query"], prior=prior, **options)
    layer, head = model.backbone.query, model.head
    with torch.no_grad():
        layer.lora_B.normal_(std=2.0)
        head.weight.fill_(1.0)
    model.requires_grad_(False)
    batch = Batch({"x": torch.randn(12, 2, 4)}, torch.randn(12))
    x = batch.inputs["x"]

    def f(core: Tensor) -> Tensor:
        hidden = layer.base_layer(x) + x @ layer.lora_A.T @ core.reshape(rank, rank).T @ layer.lora_B.T
        return head(hidden.mean(1))[:, 0]

    zero = f(torch.zeros(rank * rank))
    jacobian = torch.stack([f(e) - zero for e in torch.eye(rank * rank)], 1)
    precision = jacobian.T @ jacobian / 0.25 + torch.eye(rank * rank)
    mean = torch.linalg.solve(precision, jacobian.T @ (batch.targets - zero) / 0.25)
    return Conjugate(model, batch, mean, precision)
