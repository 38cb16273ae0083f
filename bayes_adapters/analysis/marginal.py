"""What somebody says who knows how often each outcome occurs, and nothing of the example: the predictor to beat."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError


class Marginal(NamedTuple):
    """The marginal predictor of training targets.

    Args:
        probs: of class numbers (int64) the shares of the classes, ``(n_c + ½) / (n + C/2)``, shape (C,); of 0. and 1.
            the two shares. None for other numbers.
        mean, variance: of other numbers, the moments of the Gaussian that predicts them; NaN for classes.

    >>> found = Marginal.of(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    >>> [round(float(p), 2) for p in found.probs]
    [0.7, 0.3]
    >>> [round(float(v), 3) for v in found.nll(torch.tensor([1.0, 0.0]))]
    [1.204, 0.357]
    """

    probs: Tensor | None
    mean: float = math.nan
    variance: float = math.nan

    @classmethod
    def of(cls, targets: Tensor, num_classes: int | None = None) -> Marginal:
        """Return the predictor of these training targets.

        Args:
            targets: shape (N,): int64 class numbers; floating-point 0. and 1. only, for Bernoulli; or other numbers.
            num_classes: C, where the highest class may not occur; a higher class that occurs counts, too.

        Raises:
            DataError: no targets, another shape, NaN or infinity, class numbers below 0, or other numbers that are all
                the same.
        """
        if targets.dim() != 1 or not len(targets) or not bool(targets.isfinite().all()):
            raise DataError(
                f"Training targets must be finite, of shape (N,), N ≥ 1; got {tuple(targets.shape)}. Of several "
                "targets per example take one at a time; of tokens those that have a label."
            )
        wide = targets.detach().cpu()
        if wide.is_floating_point() and not bool(((wide == 0) | (wide == 1)).all()):
            variance = float(wide.double().var()) if len(wide) > 1 else 0.0
            if variance <= 0.0:
                raise DataError(f"{len(wide)} targets that are all {float(wide[0])} have no variance.")
            return cls(None, float(wide.double().mean()), variance)
        classes = 2 if wide.is_floating_point() else num_classes
        _require_classes(wide, "Training targets")
        counts = torch.bincount(wide.long(), minlength=classes or 0).double()
        return cls((counts + 0.5) / (counts.sum() + 0.5 * len(counts)))

    def nll(self, targets: Tensor) -> Float[Tensor, " B"]:
        """Return −log p(y), nats, of each target, float64.

        Raises:
            ConfigError: a class that the predictor does not know.
            DataError: a class number below 0, or a number that is none.
        """
        wide = targets.detach().cpu()
        if self.probs is None:
            deviation = wide.double() - self.mean
            return 0.5 * (deviation.square() / self.variance + math.log(2 * math.pi * self.variance))
        _require_classes(wide, "Targets")
        highest = int(wide.max()) if wide.numel() else 0
        if highest >= len(self.probs):
            raise ConfigError(
                f"Targets hold class {highest}, and the marginal predictor knows {len(self.probs)}, 0 to "
                f"{len(self.probs) - 1}. Make it of targets that hold it, or with Marginal.of(targets, num_classes="
                f"{highest + 1})."
            )
        return -self.probs.log()[wide.long()]


def _require_classes(targets: Tensor, what: str) -> None:
    """Raise :class:`DataError` unless ``targets`` are whole numbers from 0."""
    wrong = (targets < 0) | (targets != targets.long())
    if bool(wrong.any()):
        raise DataError(
            f"{what} must be class numbers 0, 1, … here; got {targets[wrong].unique().tolist()[:8]}. −100 marks what "
            "has no label: leave it out. Numbers other than 0. and 1. need a predictor made of such numbers."
        )
