"""One count per example: Poisson, and the negative binomial, whose variance exceeds its mean."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.conditions import checked
from bayes_adapters.devices import float64
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods._checks import require_counts
from bayes_adapters.likelihoods._splits import entropy, mixture_moments, split
from bayes_adapters.likelihoods._wide import WideNegativeBinomial
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.prediction import Prediction

GRID = 512
"""Counts 0 … 511 are summed one by one."""
_TAIL = 1e-6


class CountLikelihood(Likelihood):
    """What likelihoods of counts share: how draws are averaged.

    Where every draw has at most 1e-6 of its probability beyond 511, entropies are sums over the counts 0 … 511, of a
    draw's probabilities (aleatoric) and of their average (total): exact but for that tail. Elsewhere both are
    ``½ log(2πe (v + 1/12))`` of the variance v of the draw and of the mixture, an upper bound of the entropy of any
    count of that variance; for a Poisson of v = 300 it is .0004 too large.

    Source of the bound: Massey 1988; Cover and Thomas, Elements of Information Theory, problem 8.7.
    """

    num_outputs = 1
    bounded: ClassVar[bool] = True

    def check(self, targets: Tensor) -> None:
        require_counts(targets)

    def wide(self, fn: Any) -> Any:
        """Return ``fn`` in float64: in float32, logs of about 1,000 nats leave its probabilities 4 digits."""
        raise NotImplementedError

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        fn = self.wide(fn)
        mean, variance = fn.mean, fn.variance
        grid = torch.arange(GRID, device=mean.device, dtype=mean.dtype).reshape(-1, *[1] * mean.dim())
        probs = fn.expand(torch.Size([GRID, *mean.shape])).log_prob(grid).exp().movedim(0, -1)
        summed = {
            "mean": mean,
            "square": mean.square(),
            "variance": variance,
            "probs": probs,
            "entropy": entropy(probs),
            "bound": _bound(variance),
            "beyond": float64(1.0 - probs.sum(-1) > _TAIL),
        }
        return {name: value.sum(0) for name, value in summed.items()}

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        moments = mixture_moments(sums, num_samples)
        small = sums["beyond"] == 0
        total = torch.where(small, entropy(sums["probs"] / num_samples), _bound(moments.variance))
        aleatoric = torch.where(small, sums["entropy"], sums["bound"]) / num_samples
        return split(moments.mean, total, aleatoric, num_samples, moments)


class Poisson(CountLikelihood):
    """``y ~ Poisson(exp(f))`` with targets 0, 1, 2, …, int64 or floating point.

    Density: ``log p(y | f) = y f − exp(f) − log y!``. Mean and variance of a draw are exp(f); the mean of the
    prediction averages exp(f), its variance adds the spread of exp(f) over draws.

    >>> Poisson().distribution(torch.tensor([[2.0]]).log()).log_prob(torch.tensor([0.0])).exp()
    tensor([0.1353])
    """

    name: ClassVar[str] = "poisson"

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        return checked(dist.Poisson, rate=outputs[..., 0].float().exp())

    def wide(self, fn: Any) -> Any:
        return dist.Poisson(float64(fn.rate), validate_args=False)


class NegativeBinomial(CountLikelihood):
    """``y ~ NegativeBinomial`` with mean μ = exp(f) and variance μ + μ²/r; r is learned, one for all examples.

    Density: ``log p(y | f) = log Γ(y + r) − log Γ(r) − log y! + r log(r / (r + μ)) + y log(μ / (r + μ))``. For r → ∞ it
    is the Poisson with that mean; it is a Poisson whose rate is Gamma(r, r/μ).

    Args:
        init_log_r: natural log of the initial r.

    >>> fn = NegativeBinomial(init_log_r=0.0).distribution(torch.tensor([[2.0]]).log())
    >>> fn.mean.detach(), fn.variance.detach()
    (tensor([2.]), tensor([6.]))
    """

    name: ClassVar[str] = "negative_binomial"

    def __init__(self, init_log_r: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(init_log_r):
            raise ConfigError(f"init_log_r is the log of a positive number and must be finite; got {init_log_r}.")
        self.init_log_r = init_log_r
        self.log_r = nn.Parameter(torch.tensor(float(init_log_r)))

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        log_mean = outputs[..., 0].float()
        count = self.log_r.exp().expand_as(log_mean)
        return checked(WideNegativeBinomial, total_count=count, logits=log_mean - self.log_r)

    def wide(self, fn: Any) -> Any:
        return WideNegativeBinomial(float64(fn.total_count), logits=float64(fn.logits), validate_args=False)

    def config(self) -> dict[str, Any]:
        return {"init_log_r": self.init_log_r}


def _bound(variance: Tensor) -> Tensor:
    """``½ log(2πe (v + 1/12))``, nats: no count of variance v has more entropy."""
    return 0.5 * (2 * math.pi * math.e * (variance + 1.0 / 12.0)).log()
