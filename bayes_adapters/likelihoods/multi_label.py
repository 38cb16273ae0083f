"""Several yes-or-no labels per example."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.errors import whole_number
from bayes_adapters.likelihoods._checks import require_labels
from bayes_adapters.likelihoods._known import KnownEntries
from bayes_adapters.likelihoods._splits import entropy, split
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.prediction import Prediction


class MultiLabel(Likelihood):
    """``y_k ~ Bernoulli(sigmoid(f_k))`` for K labels, independent given the outputs.

    Density: ``log p(y | x, E) = Σ_k y_k log sigmoid(f_k) + (1 − y_k) log sigmoid(−f_k)`` over the labels that are
    known. Targets are floating point of shape (B, K): 0, 1, a probability in between (a soft label), or NaN where a
    label is not known. Uncertainties are each label's own, shape (B, K); :meth:`Prediction.summed` adds them up.
    ``log_density`` is joint: one draw of the cores explains all labels of an example.

    Args:
        num_labels: K ≥ 1.

    >>> labels = MultiLabel(2)
    >>> fn = labels.distribution(torch.zeros(1, 1, 2))
    >>> fn.log_prob(torch.tensor([[1.0, 0.0]])).exp()
    tensor([[0.2500]])
    >>> labels.predict(labels.summarise(fn), 1).summed().total
    tensor([1.3863])
    """

    name: ClassVar[str] = "multi_label"
    separable: ClassVar[bool] = True
    bounded: ClassVar[bool] = True

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        whole_number("num_labels", num_labels)
        self.num_outputs = num_labels

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        return KnownEntries(dist.Bernoulli(logits=outputs.float(), validate_args=False), validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_labels(targets, self.num_outputs)

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        logits = float64(fn.base_dist.logits)
        both = torch.stack([torch.sigmoid(logits), torch.sigmoid(-logits)], -1)
        return {"mean": both[..., 0].sum(0), "entropy": entropy(both).sum(0)}

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        mean, aleatoric = sums["mean"] / num_samples, sums["entropy"] / num_samples
        return split(mean, entropy(torch.stack([mean, 1 - mean], -1)), aleatoric, num_samples)

    def config(self) -> dict[str, Any]:
        return {"num_labels": self.num_outputs}
