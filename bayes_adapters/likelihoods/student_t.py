"""One real number per example with heavy-tailed noise."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.conditions import checked
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods._real import RealLikelihood, finite_log_scale
from bayes_adapters.likelihoods._wide import WideStudentT


class StudentT(RealLikelihood):
    """``y ~ m + s (f + σ t_ν)``: noise with ν degrees of freedom, which outliers pull less than a Gaussian.

    Density, with z = (y − m − s f) / (s σ)::

        log p(y | f) = log Γ((ν+1)/2) − log Γ(ν/2) − ½ log(π ν) − log(s σ) − ½ (ν+1) log(1 + z²/ν)

    σ is learned, one for all examples; its variance is s² σ² ν / (ν − 2), so ν must exceed 2. A learned ν is
    2 + exp(``log_excess``). Aleatoric is the closed-form entropy of a draw. The mixture over draws has none: total is
    that of a Student-t with the same ν and the variance of the mixture (law of total variance), exact for S = 1 and in
    the limit of large ν the Gaussian bound.

    Args:
        df: ν > 2; its first value if it is learned.
        learn_df: whether ν is a parameter.
        init_log_scale: natural log of the initial σ.
        target_mean: m, in units of the target.
        target_scale: s > 0, in units of the target.

    Source: Lange, Little and Taylor 1989, doi 10.1080/01621459.1989.10478852.

    >>> likelihood = StudentT(df=3.0)
    >>> fn = likelihood.distribution(torch.zeros(1, 1, 1))
    >>> likelihood.predict(likelihood.summarise(fn), 1).variance.detach()
    tensor([3.])
    """

    name: ClassVar[str] = "student_t"
    num_outputs = 1

    def __init__(
        self,
        df: float = 4.0,
        learn_df: bool = False,
        init_log_scale: float = 0.0,
        *,
        target_mean: float = 0.0,
        target_scale: float = 1.0,
    ) -> None:
        super().__init__(target_mean, target_scale)
        if not 2.0 < df < math.inf:
            raise ConfigError(
                f"df must be above 2, where the variance is finite, and finite itself; got {df}. Without heavy tails "
                "take Gaussian."
            )
        self.df, self.learn_df, self.init_log_scale = float(df), learn_df, init_log_scale
        self.log_scale = nn.Parameter(finite_log_scale(init_log_scale))
        if learn_df:
            self.log_excess = nn.Parameter(torch.tensor(math.log(df - 2.0)))

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        loc = self.target_mean + self.target_scale * outputs[..., 0].float()
        df = 2.0 + self.log_excess.exp() if self.learn_df else loc.new_tensor(self.df)
        scale = (self.target_scale * self.log_scale.exp()).expand_as(loc)
        return checked(WideStudentT, df=df.expand_as(loc), loc=loc, scale=scale)

    def config(self) -> dict[str, Any]:
        return {"df": self.df, "learn_df": self.learn_df, "init_log_scale": self.init_log_scale} | self.unit()
