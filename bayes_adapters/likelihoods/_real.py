"""What likelihoods of real numbers share: the target's unit, in which predictions come back, and how it is fitted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods._checks import require_reals
from bayes_adapters.likelihoods.base import Likelihood

_LARGE, _SMALL = 10.0, 0.01


class RealLikelihood(Likelihood):
    """Base of likelihoods of one real number per example.

    The head's outputs are in the unit ``target_scale`` around ``target_mean``, so that it starts near the targets
    whatever their unit is; density, mean and variance are in the target's own unit.

    Args:
        target_mean: m, in units of the target.
        target_scale: s > 0, in units of the target.
    """

    def __init__(self, target_mean: float = 0.0, target_scale: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(target_mean) and 0.0 < target_scale < math.inf):
            raise ConfigError(
                f"target_mean must be finite and target_scale positive and finite; got {target_mean} and "
                f"{target_scale}. {type(self).__name__}.fitted(targets) takes both from the training targets."
            )
        self.target_mean, self.target_scale = float(target_mean), float(target_scale)

    @classmethod
    def fitted(cls, targets: Tensor, **options: Any) -> Likelihood:
        """Return the likelihood whose unit is that of the training targets: their mean and standard deviation.

        Args:
            targets: shape (N,), floating point.
            **options: the other constructor arguments.

        Raises:
            DataError: fewer than two different targets, or NaN or infinity among them.
        """
        require_reals(targets)
        wide = targets.detach().cpu().double()
        scale = float(wide.std()) if len(wide) > 1 else 0.0
        if scale <= 0.0:
            raise DataError(f"{len(wide)} targets that are all {wide[0].item()} have no scale to take a unit from.")
        return cls(**{"target_mean": float(wide.mean()), "target_scale": scale} | options)

    def check(self, targets: Tensor) -> None:
        require_reals(targets)

    def advice(self, targets: Tensor) -> list[str]:
        return far_from_unit(type(self).__name__, (targets - self.target_mean) / self.target_scale)

    def unit(self) -> dict[str, Any]:
        """``target_mean`` and ``target_scale`` for :meth:`config`, where they are not 0 and 1."""
        if (self.target_mean, self.target_scale) == (0.0, 1.0):
            return {}
        return {"target_mean": self.target_mean, "target_scale": self.target_scale}


def far_from_unit(likelihood: str, standardised: Tensor) -> list[str]:
    """Say so where targets, in the likelihood's unit, have a median magnitude outside 0.01 … 10."""
    size = float(standardised.detach().float().abs().nanmedian())  # not the mean: one outlier is no unit
    if not (size > _LARGE or 0.0 < size < _SMALL):
        return []
    return [
        f"The targets' median magnitude is {size:.3g} in the unit of {likelihood}, which starts at 0 ± 1: training "
        f"will hardly reach them, and intervals will not cover. Take {likelihood}.fitted(training targets); "
        "predictions come back in the targets' own unit."
    ]


def finite_log_scale(value: float) -> Tensor:
    """Return ``value`` as a tensor; raise :class:`ConfigError` unless it is the log of a standard deviation."""
    if not math.isfinite(value):
        raise ConfigError(f"init_log_scale is the log of a standard deviation and must be finite; got {value}.")
    return torch.tensor(float(value))
