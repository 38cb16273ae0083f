"""Several real numbers per example, each with its own noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.conditions import checked
from bayes_adapters.errors import ConfigError, DataError, whole_number
from bayes_adapters.likelihoods._checks import require_rows_of_reals
from bayes_adapters.likelihoods._conjugate import ConjugateNormal, conjugate
from bayes_adapters.likelihoods._expected import ExpectedNormal, predictive
from bayes_adapters.likelihoods._known import KnownEntries
from bayes_adapters.likelihoods._real import far_from_unit, finite_log_scale
from bayes_adapters.likelihoods._splits import normal_prediction, normal_sums
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.gaussian_outputs import ConjugateOutputs, GaussianOutputs
from bayes_adapters.likelihoods.prediction import Prediction


class MultiGaussian(Likelihood):
    """``y_k ~ N(m_k + s_k f_k, (s_k σ_k)²)`` for K numbers, independent given the outputs, with a learned σ_k each.

    Density: ``log p(y | x, E) = Σ_k log N(y_k; m_k + s_k f_k, (s_k σ_k)²)`` over the numbers that are known. Targets
    are floating point of shape (B, K), NaN where a number is not known. Means, variances and uncertainties are each
    number's own, shape (B, K); total is the entropy of a Gaussian with the predictive variance, as of
    :class:`Gaussian`; :meth:`Prediction.summed` adds up. ``log_density`` is joint.

    Args:
        num_outputs: K ≥ 1.
        init_log_scale: natural log of every initial σ_k.
        target_mean: m, one number for all or K of them, in units of the targets.
        target_scale: s > 0, one number for all or K of them.

    >>> import torch
    >>> likelihood = MultiGaussian.fitted(torch.tensor([[5.0, 100.0], [45.0, 300.0]]))
    >>> likelihood.distribution(torch.zeros(1, 2)).mean
    tensor([[ 25., 200.]])
    """

    name: ClassVar[str] = "multi_gaussian"
    separable: ClassVar[bool] = True
    has_expected: ClassVar[bool] = True
    expected_predicts: ClassVar[bool] = True

    def __init__(
        self,
        num_outputs: int,
        init_log_scale: float = 0.0,
        *,
        target_mean: float | Sequence[float] = 0.0,
        target_scale: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        whole_number("num_outputs", num_outputs)
        self.num_outputs, self.init_log_scale = num_outputs, init_log_scale
        self.target_mean = _numbers("target_mean", target_mean, num_outputs)
        self.target_scale = _numbers("target_scale", target_scale, num_outputs)
        if min(self.target_scale) <= 0.0:
            raise ConfigError(f"target_scale must be positive; got {target_scale}.")
        self.log_scale = nn.Parameter(finite_log_scale(init_log_scale).repeat(num_outputs))

    @classmethod
    def fitted(cls, targets: Float[Tensor, "N K"], **options: Any) -> MultiGaussian:
        """Return the likelihood whose units are mean and standard deviation of the known training targets.

        Raises:
            DataError: a column has fewer than two different known numbers.
        """
        require_rows_of_reals(targets, targets.shape[-1])
        columns = [column[~column.isnan()] for column in targets.detach().cpu().double().unbind(1)]
        scales = [float(column.std()) if len(column) > 1 else 0.0 for column in columns]
        if min(scales) <= 0.0:
            raise DataError(f"Column {scales.index(min(scales))} of the targets has no scale to take a unit from.")
        means = [float(column.mean()) for column in columns]
        return cls(targets.shape[1], **{"target_mean": means, "target_scale": scales} | options)

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        outputs = outputs.float()
        unit, centre = outputs.new_tensor(self.target_scale), outputs.new_tensor(self.target_mean)
        loc = centre + unit * outputs
        normal = checked(dist.Normal, loc=loc, scale=(unit * self.log_scale.exp()).expand_as(loc))
        return KnownEntries(normal, validate_args=False)

    def expected(self, outputs: GaussianOutputs) -> TorchDistributionMixin:
        unit, centre = outputs.mean.new_tensor(self.target_scale), outputs.mean.new_tensor(self.target_mean)
        if isinstance(outputs, ConjugateOutputs):
            return conjugate(outputs, centre, unit, single=False)
        loc = centre + unit * outputs.mean
        scale = self.log_scale.exp().expand_as(loc) if outputs.noise is None else outputs.noise.sqrt()
        spread = unit.square() * outputs.variance
        normal = checked(ExpectedNormal, loc=loc, scale=unit * scale, spread=spread)
        return KnownEntries(normal, validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_rows_of_reals(targets, self.num_outputs)

    def advice(self, targets: Tensor) -> list[str]:
        unit, centre = targets.new_tensor(self.target_scale), targets.new_tensor(self.target_mean)
        columns = ((targets - centre) / unit).unbind(1)
        return [text for column in columns for text in far_from_unit(type(self).__name__, column)][:1]

    def log_density(self, fn: Any, targets: Any) -> Float[Tensor, "S B"]:
        if isinstance(fn, ConjugateNormal):
            return predictive(fn).log_prob(targets)
        return KnownEntries(predictive(fn.base_dist), validate_args=False).log_prob(targets)

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        normal = fn if isinstance(fn, ConjugateNormal) else fn.base_dist
        return normal_sums(normal.loc, normal.scale, getattr(normal, "spread", None))

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        return normal_prediction(sums, num_samples)

    def config(self) -> dict[str, Any]:
        return {
            "num_outputs": self.num_outputs,
            "init_log_scale": self.init_log_scale,
            "target_mean": self.target_mean,
            "target_scale": self.target_scale,
        }


def _numbers(name: str, value: float | Sequence[float], count: int) -> list[float]:
    found = [float(value)] * count if isinstance(value, int | float) else [float(v) for v in value]
    if len(found) != count or not all(math.isfinite(v) for v in found):
        raise ConfigError(f"{name} must be one finite number or {count} of them; got {value}.")
    return found
