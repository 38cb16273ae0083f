"""Likelihoods: how outputs of the head become a distribution of the target, and how posterior draws are averaged.

Every likelihood has the same members: ``num_outputs`` (what the head must produce), ``distribution`` (outputs →
p(y | draw)), ``check`` (targets), ``summarise`` (sums over draws that can be added up chunk by chunk) and
``predict`` (sums → :class:`Prediction`). Total = aleatoric + epistemic, in nats.
"""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.likelihoods.prediction import Prediction


class Likelihood(nn.Module):
    """What a likelihood must provide; see the module's docstring."""

    name: ClassVar[str]
    """The registered name, as written into saved adapters."""
    num_outputs: int
    per_token: ClassVar[bool] = False
    """Whether there is one target a token, rather than one an example."""

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        """Return p(y | draw) with batch shape (*S, B)."""
        raise NotImplementedError

    def of_tokens(self, outputs: Float[Tensor, "*S B T K"], real: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        """Return p(y | draw) with batch shape (*S, B) and event shape (T,), padding left out; if ``per_token``."""
        raise NotImplementedError

    def check(self, targets: Tensor) -> None:
        """Raise :class:`DataError` if a target lies outside the support."""
        raise NotImplementedError

    def summarise(self, fn: TorchDistributionMixin) -> dict[str, Float[Tensor, "B ..."]]:
        """Sum over draws what :meth:`predict` needs; ``fn`` has batch shape (S, B)."""
        raise NotImplementedError

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        """Average the sums of ``num_samples`` draws."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {}


def above_rounding(epistemic: Tensor) -> Tensor:
    """Set what lies below 1e-12 nats to 0: it is rounding, and would rank examples by noise."""
    return epistemic.where(epistemic > 1e-12, 0.0)
