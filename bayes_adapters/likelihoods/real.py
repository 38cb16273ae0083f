"""One real number per example: Gaussian likelihoods with one noise for all examples, or one per example."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.conditions import checked
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods._conjugate import conjugate
from bayes_adapters.likelihoods._expected import ExpectedNormal, predictive
from bayes_adapters.likelihoods._real import RealLikelihood, finite_log_scale
from bayes_adapters.likelihoods._splits import normal_prediction, normal_sums
from bayes_adapters.likelihoods.gaussian_outputs import ConjugateOutputs, GaussianOutputs
from bayes_adapters.likelihoods.prediction import Prediction


class _NormalLikelihood(RealLikelihood):
    """What both Gaussian likelihoods share: how draws are averaged."""

    def log_density(self, fn: Any, targets: Any) -> Float[Tensor, "S B"]:
        scored: Tensor = predictive(fn).log_prob(targets)
        return scored

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        return normal_sums(fn.loc, fn.scale, getattr(fn, "spread", None))

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        return normal_prediction(sums, num_samples)


class Gaussian(_NormalLikelihood):
    """``y ~ N(m + s f, (s σ)²)`` with one learned σ for all examples; m = 0 and s = 1 unless given.

    Density: ``log p(y | f) = −½ ((y − m − s f) / (s σ))² − log(s σ) − ½ log 2π``. For targets far from mean 0 and
    standard deviation 1 take ``Gaussian.fitted(targets)``: the head starts at 0 and σ at 1, and it would take them
    thousands of steps to reach, say, 25 ± 12.

    Args:
        init_log_scale: natural log of the initial σ.
        target_mean: m, in units of the target.
        target_scale: s > 0, in units of the target.

    >>> import torch
    >>> years = torch.tensor([5.0, 25.0, 45.0])
    >>> likelihood = Gaussian.fitted(years)
    >>> likelihood.distribution(torch.zeros(1, 3, 1)).mean
    tensor([[25., 25., 25.]])
    """

    name: ClassVar[str] = "gaussian"
    num_outputs = 1
    has_expected: ClassVar[bool] = True
    expected_predicts: ClassVar[bool] = True

    def __init__(self, init_log_scale: float = 0.0, *, target_mean: float = 0.0, target_scale: float = 1.0) -> None:
        super().__init__(target_mean, target_scale)
        self.init_log_scale = init_log_scale
        self.log_scale = nn.Parameter(finite_log_scale(init_log_scale))

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        loc = self.target_mean + self.target_scale * outputs[..., 0].float()
        return checked(dist.Normal, loc=loc, scale=(self.target_scale * self.log_scale.exp()).expand_as(loc))

    def expected(self, outputs: GaussianOutputs) -> TorchDistributionMixin:
        if isinstance(outputs, ConjugateOutputs):
            centre, unit = (outputs.mean.new_tensor([value]) for value in (self.target_mean, self.target_scale))
            return conjugate(outputs, centre, unit, single=True)
        loc = self.target_mean + self.target_scale * outputs.mean[..., 0]
        scale = self.log_scale.exp().expand_as(loc) if outputs.noise is None else outputs.noise[..., 0].sqrt()
        spread = self.target_scale**2 * outputs.variance[..., 0]
        return checked(ExpectedNormal, loc=loc, scale=self.target_scale * scale, spread=spread)

    def config(self) -> dict[str, Any]:
        return {"init_log_scale": self.init_log_scale} | self.unit()


class HeteroscedasticGaussian(_NormalLikelihood):
    """``y ~ N(m + s f₀, (s softplus(f₁ + softplus⁻¹(1)) + min_scale)²)``: the head predicts mean and scale.

    The standard deviation at f₁ = 0 is s + ``min_scale``; m = 0 and s = 1 unless given.

    Args:
        min_scale: added to the standard deviation, in units of the target; keeps the density finite.
        target_mean: m, in units of the target.
        target_scale: s > 0, in units of the target.

    >>> import torch
    >>> fn = HeteroscedasticGaussian(min_scale=0.0).distribution(torch.zeros(1, 2))
    >>> fn.mean, fn.scale
    (tensor([0.]), tensor([1.]))
    """

    name: ClassVar[str] = "heteroscedastic_gaussian"
    num_outputs = 2

    def __init__(self, min_scale: float = 1e-4, *, target_mean: float = 0.0, target_scale: float = 1.0) -> None:
        super().__init__(target_mean, target_scale)
        if not 0.0 <= min_scale < math.inf:
            raise ConfigError(
                f"min_scale is added to a standard deviation and must be finite and not negative; got {min_scale}."
            )
        self.min_scale = min_scale

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        outputs = outputs.float()
        scale = self.target_scale * nn.functional.softplus(outputs[..., 1] + math.log(math.e - 1)) + self.min_scale
        return checked(dist.Normal, loc=self.target_mean + self.target_scale * outputs[..., 0], scale=scale)

    def config(self) -> dict[str, Any]:
        return {"min_scale": self.min_scale} | self.unit()
