"""What scores targets under Gaussian outputs: E_f log p(y | f), or a lower bound of it, in closed form."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from bayes_adapters.likelihoods._conjugate import ConjugateNormal


class JensenCategorical(TorchDistribution):
    """``E_f log softmax(f)[y] ≥ m_y − logsumexp_k(m_k + ½ v_k)``: Jensen's inequality for the logarithm.

    It is a bound and no density: summed over y it is at most 1, and exactly 1 for v = 0.

    Args:
        mean: m, shape (*batch, C).
        variance: v ≥ 0, the same shape.
    """

    arg_constraints = {"mean_logits": constraints.real_vector, "variance_logits": constraints.nonnegative}
    support = constraints.nonnegative_integer

    def __init__(self, mean: Tensor, variance: Tensor, *, validate_args: bool | None = None) -> None:
        self.mean_logits, self.variance_logits = mean, variance
        super().__init__(mean.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> JensenCategorical:
        """Return the same bound with another batch shape."""
        shape = torch.Size(batch_shape) + self.mean_logits.shape[-1:]
        return JensenCategorical(
            self.mean_logits.expand(shape), self.variance_logits.expand(shape), validate_args=False
        )

    def log_prob(self, value: Tensor) -> Float[Tensor, "*batch"]:
        """Return the bound for the classes ``value``."""
        value, mean = torch.broadcast_tensors(value[..., None], self.mean_logits[..., :1])[0], self.mean_logits
        mean = mean.expand(*value.shape[:-1], -1)
        return mean.gather(-1, value)[..., 0] - torch.logsumexp(mean + 0.5 * self.variance_logits, -1)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Draw f, and a class given f: exact."""
        f = dist.Normal(self.mean_logits, self.variance_logits.sqrt()).sample(torch.Size(sample_shape or ()))
        return dist.Categorical(logits=f).sample()


class JensenBernoulli(TorchDistribution):
    """``E_f log p(y | f) ≥ y m − softplus(m + ½ v)``: that of two classes, one of whose logits is 0.

    Args:
        mean: m, shape (*batch).
        variance: v ≥ 0, the same shape.
    """

    arg_constraints = {"mean_logits": constraints.real, "variance_logits": constraints.nonnegative}
    support = constraints.unit_interval

    def __init__(self, mean: Tensor, variance: Tensor, *, validate_args: bool | None = None) -> None:
        self.mean_logits, self.variance_logits = mean, variance
        super().__init__(mean.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> JensenBernoulli:
        """Return the same bound with another batch shape."""
        shape = torch.Size(batch_shape)
        return JensenBernoulli(self.mean_logits.expand(shape), self.variance_logits.expand(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Float[Tensor, "*batch"]:
        """Return the bound for the targets ``value``, 0 … 1."""
        return value * self.mean_logits - F.softplus(self.mean_logits + 0.5 * self.variance_logits)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Draw f, and a class given f: exact."""
        f = dist.Normal(self.mean_logits, self.variance_logits.sqrt()).sample(torch.Size(sample_shape or ()))
        return dist.Bernoulli(logits=f).sample()


class ExpectedNormal(dist.Normal):
    """``E_f log N(y; f, σ²) = log N(y; m, σ²) − ½ v / σ²`` for f ~ N(m, v): exact.

    Args:
        loc: m, any shape.
        scale: σ, the same shape.
        spread: v ≥ 0, the same shape, squared units of the target.
    """

    arg_constraints = {**dist.Normal.arg_constraints, "spread": constraints.nonnegative}

    def __init__(self, loc: Tensor, scale: Tensor, spread: Tensor, *, validate_args: bool | None = None) -> None:
        self.spread = spread
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ExpectedNormal:
        """Return the same with another batch shape."""
        shape = torch.Size(batch_shape)
        parts = (part.expand(shape) for part in (self.loc, self.scale, self.spread))
        return ExpectedNormal(*parts, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the expected log density."""
        scored: Tensor = super().log_prob(value)
        return scored - 0.5 * self.spread / self.scale.square()

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Draw a target: from the predictive, whose variance is v + σ²."""
        drawn: Tensor = predictive(self).sample(torch.Size(sample_shape or ()))
        return drawn


def predictive(normal: Any) -> Any:
    """Return p(y) = ∫ N(y; f, σ²) N(f; m, v) df = N(y; m, v + σ²); a plain Gaussian is returned as it is.

    Where σ² is integrated over, too, p(y) is Student's t.
    """
    if isinstance(normal, ConjugateNormal):
        return normal.predictive()
    if not isinstance(normal, ExpectedNormal):
        return normal
    return dist.Normal(normal.loc, (normal.scale.square() + normal.spread).sqrt(), validate_args=False)
