"""One class per real token of a sequence."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.distributions import TokenLabels
from bayes_adapters.likelihoods._checks import require_as_many, require_tagged
from bayes_adapters.likelihoods.classes import ClassLikelihood


class Tagging(ClassLikelihood):
    """``y_t ~ Categorical(softmax(f_t))`` for every real token t, with targets int64 of shape (B, T).

    Density: ``log p(y | x, E) = Σ_t log softmax(f_t)[y_t]`` over real tokens whose target is not −100; the nll of an
    example is that **sum**, not its mean: an example is one datum of the ELBO, and its labels are its evidence. At
    padding a target may be any class, or −100. A draw of the cores explains all labels of an example together, so
    ``log_density`` is joint, while probabilities (B, T, C) and entropies (B, T), zero at padding, are each token's own.

    Args:
        num_classes: C ≥ 2.

    >>> import torch
    >>> fn = Tagging(2).of_tokens(torch.zeros(1, 3, 2), torch.tensor([[True, True, False]]))
    >>> fn.log_prob(torch.tensor([[1, -100, 0]])).exp()  # one labelled token
    tensor([0.5000])
    """

    name: ClassVar[str] = "tagging"
    per_token: ClassVar[bool] = True
    apart: ClassVar[bool] = True

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return self.of_tokens(outputs, None)

    def of_tokens(self, outputs: Tensor, real: Tensor | None) -> TorchDistributionMixin:
        return TokenLabels(outputs.float(), real, validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_tagged(targets, self.num_outputs)

    def log_density(self, fn: TorchDistributionMixin, targets: Tensor) -> Float[Tensor, "S B"]:
        require_as_many(targets, fn.event_shape[0])
        return super().log_density(fn, targets)
