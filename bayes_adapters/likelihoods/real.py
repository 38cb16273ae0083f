"""One real number per example: Gaussian likelihoods with one noise for all examples, or one per example."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods._checks import require_reals
from bayes_adapters.likelihoods._splits import HALF_LOG_TWO_PI_E, mixture_moments, split
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.prediction import Prediction


class _NormalLikelihood(Likelihood):
    """What both Gaussian likelihoods share.

    The averaged predictive is a mixture of S Gaussians without a closed-form entropy; total is the entropy
    ``½ log(2πe v)`` of the Gaussian with the mixture's variance v, an upper bound that is exact for S = 1.
    """

    def check(self, targets: Tensor) -> None:
        require_reals(targets)

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        entropy = fn.scale.double().log() + HALF_LOG_TWO_PI_E
        loc, variance = fn.loc.double(), fn.scale.double().square()
        return {
            "mean": loc.sum(0),
            "square": loc.square().sum(0),
            "variance": variance.sum(0),
            "entropy": entropy.sum(0),
        }

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        mean, variance = mixture_moments(sums, num_samples)
        total = 0.5 * (2 * math.pi * math.e * variance).log()
        return split(mean, total, sums["entropy"] / num_samples, num_samples, variance)


class Gaussian(_NormalLikelihood):
    """``y ~ N(f, σ²)`` with one learned σ for all examples.

    Args:
        init_log_scale: natural log of the initial standard deviation.
    """

    name: ClassVar[str] = "gaussian"
    num_outputs = 1

    def __init__(self, init_log_scale: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(init_log_scale):
            raise ConfigError(
                f"init_log_scale is the log of a standard deviation and must be finite; got {init_log_scale}."
            )
        self.init_log_scale = init_log_scale
        self.log_scale = nn.Parameter(torch.tensor(float(init_log_scale)))

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        loc = outputs[..., 0].float()
        return dist.Normal(loc, self.log_scale.exp().expand_as(loc))

    def config(self) -> dict[str, Any]:
        return {"init_log_scale": self.init_log_scale}


class HeteroscedasticGaussian(_NormalLikelihood):
    """``y ~ N(f₀, softplus(f₁ + softplus⁻¹(1))² )``: the head predicts mean and scale; σ = 1 at f₁ = 0.

    Args:
        min_scale: added to σ, in units of the target; keeps the density finite.
    """

    name: ClassVar[str] = "heteroscedastic_gaussian"
    num_outputs = 2

    def __init__(self, min_scale: float = 1e-4) -> None:
        super().__init__()
        if not 0.0 <= min_scale < math.inf:
            raise ConfigError(
                f"min_scale is added to a standard deviation and must be finite and not negative; got {min_scale}."
            )
        self.min_scale = min_scale

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        outputs = outputs.float()
        scale = nn.functional.softplus(outputs[..., 1] + math.log(math.e - 1)) + self.min_scale
        return dist.Normal(outputs[..., 0], scale)

    def config(self) -> dict[str, Any]:
        return {"min_scale": self.min_scale}
