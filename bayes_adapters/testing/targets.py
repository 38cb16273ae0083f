"""Small targets whose posteriors are stored: six models with fixed data, from two to nine random weights.

Each is a model of this library, so that any guide, sampler or post-hoc method can be held against its reference. Inputs
and frozen weights come from seeded generators, and a reference knows the log joint density of its model at some points:
another version of a backbone that computes something else is refused, not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Bernoulli, Gaussian
from bayes_adapters.models.diagonal_core import DiagonalCore
from bayes_adapters.models.stochastic_core import StochasticCore
from bayes_adapters.models.stochastic_factors import StochasticFactors
from bayes_adapters.sites import Granularity, Part
from bayes_adapters.testing.case import seeded, standard_backbone
from bayes_adapters.testing.linear_gaussian import LinearGaussian

_LABELLED = 16


@dataclass(frozen=True)
class Target:
    """A model and all of its data.

    Args:
        name: of the target.
        description: what makes its posterior what it is.
        make_model: makes the model anew, of which only the random weights are not fixed.
        make_batch: makes the batch of all examples, with targets.
        mirrored: the posterior is the same at −w as at w, so that a chain in one of two modes knows the other.
    """

    name: str
    description: str
    make_model: Callable[[], AdapterModel]
    make_batch: Callable[[], Batch]
    mirrored: bool = False


class Layer(nn.Module):
    """A backbone of one linear layer without bias: hidden states are W₀ x plus what an adapter adds.

    Args:
        inputs: width of x.
        outputs: width of the hidden states.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=outputs)
        self.query = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Any:
        """Return the hidden states, shape (B, T, outputs)."""
        return SimpleNamespace(last_hidden_state=self.query(x))


def funnel_prior(name: str, shape: tuple[int, ...]) -> Any:  # noqa: ARG001 -- one scale, whatever the site
    """Return the prior ``E_ij | τ ~ N(0, τ²)``, ``log τ ~ N(−½, ¼)``: the scale and the weights under it are random."""
    tau = pyro.sample("tau", dist.LogNormal(torch.tensor(-0.5), torch.tensor(0.5)))
    return dist.Normal(torch.zeros(shape), tau)


def _fill(module: nn.Module, seed: int, scale: float) -> None:
    """Draw every parameter but those of normalisations from N(0, scale²), in the order of their names."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if "LayerNorm" not in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=source))


def _layer_model(kind: Any, inputs: int, rank: int, noise: float, size: int, prior: Any, **options: Any) -> Any:
    """Return a model of one layer; its output is the sum of W₀ x + B E A x over three outputs, or of one."""
    with seeded(0):
        outputs = 1 if kind is StochasticFactors else 3
        likelihood = Gaussian(math.log(noise))
        settings = {"targets": ["query"], "rank": rank, "alpha": float(rank), "num_data": size, "prior": prior}
        model = kind(Layer(inputs, outputs), likelihood, **settings, **options)
    _fill(model, 1, 1.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head."):
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.startswith("likelihood."):
                parameter.fill_(math.log(noise))
    return model.requires_grad_(False)


def _correlated() -> AdapterModel:
    options = {"granularity": "global"}
    return _layer_model(StochasticCore, 4, 3, 3.0, 12, dist.Normal(0.0, 1.0), **options)


def _funnel() -> AdapterModel:
    return _layer_model(StochasticCore, 4, 2, 1.0, 8, funnel_prior, granularity="global")


def _product() -> AdapterModel:
    model = _layer_model(StochasticFactors, 1, 1, 0.5, 8, dist.Normal(0.0, 1.0))
    model.backbone.get_parameter("query.base_layer.weight").zero_()
    return model


def _inputs(size: int, width: int, seed: int, common: float = 0.0) -> Tensor:
    """Return x, shape (B, 1, width): N(0, 1), of which the share ``common`` is one direction that examples scale."""
    source = torch.Generator().manual_seed(seed)
    own = torch.randn(size, 1, width, generator=source)
    strength, direction = torch.randn(size, 1, 1, generator=source), torch.randn(width, generator=source)
    return (1 - common) * own + common * strength * direction


def _layer_batch(width: int, size: int, seed: int, common: float = 0.0) -> Batch:
    x = _inputs(size, width, seed, common)
    y = x.sum((1, 2)) + 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(seed + 1))
    return Batch({"x": x}, y)


def _text_model(kind: Any, targets: list[str], **options: Any) -> AdapterModel:
    """Return a BERT of one layer of width 8 whose adapters matter: every fixed weight is drawn, and those of B wide."""
    with seeded(0):
        settings = {"targets": targets, "rank": 2, "prior": dist.Normal(0.0, 1.0), "num_data": _LABELLED}
        model: AdapterModel = kind(standard_backbone(), Bernoulli(), **settings, **options)
    _fill(model, 2, 0.35)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.mul_(2.0)
        model.head.get_parameter("weight").mul_(4.0)
        model.head.get_parameter("bias").zero_()
    return model.requires_grad_(False)


def _text_batch(labels: list[int]) -> Batch:
    source = torch.Generator().manual_seed(7)
    ids = torch.randint(1, 20, (_LABELLED, 4), generator=source)
    mask = torch.ones_like(ids)
    mask[1::2, 3:] = 0
    return Batch({"input_ids": ids, "attention_mask": mask}, torch.tensor(labels).float())


def _linear(part: Part) -> LinearGaussian:
    return LinearGaussian(part, Granularity.GLOBAL)


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "linear-core",
            "A core of 2 × 2 in one linear layer, Gaussian noise: the posterior is Gaussian.",
            lambda: _linear(Part.CORE).make_model(),
            lambda: Batch(_linear(Part.CORE).batch.inputs, _linear(Part.CORE).batch.targets),
        ),
        Target(
            "correlated-core",
            "A core of 3 × 3 and inputs that lie almost on one line: Gaussian, and data see few of its directions.",
            _correlated,
            lambda: _layer_batch(4, 12, 5, 0.9),
        ),
        Target(
            "logistic-diagonal",
            "Two numbers in the values of a BERT of one layer, and sixteen labels.",
            lambda: _text_model(DiagonalCore, ["value"]),
            lambda: _text_batch([1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1]),
        ),
        Target(
            "logistic-core",
            "Cores of 2 × 2 in query and value of a BERT of one layer, and sixteen labels: eight numbers.",
            lambda: _text_model(StochasticCore, ["query", "value"], granularity="global"),
            lambda: _text_batch([1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]),
        ),
        Target(
            "scale-funnel",
            "A core of 2 × 2 under a prior whose scale is random: where the scale is small, so are the weights.",
            _funnel,
            lambda: _layer_batch(4, 8, 9),
        ),
        Target(
            "product",
            "A times B in one layer of one input and one output: w and −w are alike, so there are two modes.",
            _product,
            lambda: _layer_batch(1, 8, 11),
            mirrored=True,
        ),
    )
}
"""Name → target, of every stored reference."""
