"""One class per example: Categorical and Bernoulli, and how draws of class probabilities are averaged."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.conditions import checked
from bayes_adapters.devices import float64
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods._checks import require_class_numbers, require_probabilities
from bayes_adapters.likelihoods._expected import JensenBernoulli, JensenCategorical
from bayes_adapters.likelihoods._splits import class_prediction, class_sums, entropy, split
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.gaussian_outputs import GaussianOutputs
from bayes_adapters.likelihoods.prediction import Prediction


class ClassLikelihood(Likelihood):
    """What likelihoods over C classes share: C itself, and how draws of class probabilities are averaged."""

    bounded: ClassVar[bool] = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ConfigError(f"num_classes must be a whole number of at least 2; got {num_classes}.")
        self.num_outputs = num_classes

    def draw_mean(self, fn: Any) -> Tensor:
        return fn.probs

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        return class_sums(fn.probs)

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        return class_prediction(sums, num_samples)

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_outputs}


class Categorical(ClassLikelihood):
    """``y ~ Categorical(softmax(f))`` with targets int64 in 0 … C-1.

    Density: ``log p(y | f) = log softmax(f)[y]``.

    Args:
        num_classes: C ≥ 2.

    >>> likelihood = Categorical(3)
    >>> fn = likelihood.distribution(torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 9.0, 0.0]]]))  # two draws that disagree
    >>> found = likelihood.predict(likelihood.summarise(fn), 2)
    >>> found.probs.round(decimals=2), found.epistemic.round(decimals=2)
    (tensor([[0.5000, 0.5000, 0.0000]]), tensor([0.6900]))
    """

    name: ClassVar[str] = "categorical"
    has_expected: ClassVar[bool] = True

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return checked(dist.Categorical, logits=outputs.float())

    def expected(self, outputs: GaussianOutputs) -> TorchDistributionMixin:
        return JensenCategorical(outputs.mean, outputs.variance, validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_class_numbers(targets, self.num_outputs)


class Bernoulli(Likelihood):
    """``y ~ Bernoulli(sigmoid(f))`` with targets 0. or 1. (or probabilities in between, as soft labels).

    Density: ``log p(y | f) = y log sigmoid(f) + (1 − y) log sigmoid(−f)``.

    >>> Bernoulli().distribution(torch.zeros(1, 1)).log_prob(torch.tensor([1.0])).exp()
    tensor([0.5000])
    """

    name: ClassVar[str] = "bernoulli"
    num_outputs = 1
    bounded: ClassVar[bool] = True
    has_expected: ClassVar[bool] = True

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=outputs[..., 0].float(), validate_args=False)

    def expected(self, outputs: GaussianOutputs) -> TorchDistributionMixin:
        return JensenBernoulli(outputs.mean[..., 0], outputs.variance[..., 0], validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_probabilities(targets)

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        logits = float64(fn.logits)
        both = torch.stack([torch.sigmoid(logits), torch.sigmoid(-logits)], -1)
        return {"mean": both[..., 0].sum(0), "entropy": entropy(both).sum(0)}

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        mean, aleatoric = sums["mean"] / num_samples, sums["entropy"] / num_samples
        return split(mean, entropy(torch.stack([mean, 1 - mean], -1)), aleatoric, num_samples)
