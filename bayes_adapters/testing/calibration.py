"""Variational simulation-based calibration: is the posterior that training finds centred, and as wide as it should be?

Latents θ are drawn from the prior, data y from the model, and the guide is fitted to y, many times. With the exact
posterior the probability p = Q(θ_j ≤ θ*_j), that fitted draws lie below the true latent, is uniform. A distribution of
p that is not symmetric about ½ says that means are biased; one with much mass near 0 and 1 that q is too narrow.

Source: Yao, Vehtari, Simpson and Gelman 2018, "Yes, but did it work?", arXiv 1802.02538, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, whole_number
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.testing.case import Case, MakeGuide, seeded
from bayes_adapters.testing.conjugate import gaussian_of
from bayes_adapters.testing.linear_gaussian import LinearGaussian
from bayes_adapters.testing.report import NotApplicableError


@dataclass(frozen=True)
class Calibration:
    """What simulation found.

    Args:
        below: shape (M, D), float64, in [0, 1]: Q(θ_j ≤ θ*_j) of the D latents in M simulations.

    >>> even = Calibration(((torch.arange(100) + 0.5) / 100).double()[:, None])
    >>> even.coverage([0.5, 0.9]), round(even.asymmetry(), 3), abs(even.excess()) < 0.01
    ([0.5, 0.9], 1.0, True)
    """

    below: Tensor

    def coverage(self, levels: Sequence[float]) -> list[float]:
        """Return the share of latents that lie in their central interval, for each nominal level in (0, 1).

        Raises:
            DataError: a level is outside (0, 1).
        """
        if not all(0.0 < level < 1.0 for level in levels):
            raise DataError(f"Nominal levels of coverage lie in (0, 1); got {list(levels)}.")
        reach = (2.0 * self.below - 1.0).abs()
        return [float((reach <= level).double().mean()) for level in levels]

    def asymmetry(self) -> float:
        """Return the p-value that ``below`` and 1 − ``below`` have one distribution; small where means are biased.

        The two-sample Kolmogorov–Smirnov test of each latent, its asymptotic p-value, and the least of them times
        their number (Bonferroni), at most 1.
        """
        ranked = self.below.sort(0).values
        mirrored = (1.0 - self.below).sort(0).values
        count = len(ranked)
        points = torch.cat([ranked, mirrored])

        def share(values: Tensor) -> Tensor:
            found = torch.searchsorted(values.T.contiguous(), points.T.contiguous(), right=True).T
            return found.double() / count

        distance = (share(ranked) - share(mirrored)).abs().amax(0)
        p = min(_kolmogorov(float(d) * math.sqrt(count / 2.0)) for d in distance)
        return min(1.0, p * self.below.shape[1])

    def excess(self) -> float:
        """Return 12 times the variance of ``below`` about ½, less 1: positive where q is too narrow, 0 where it fits.

        −1 is a q so wide that every latent lies at its centre, 2 one that has every latent outside. With D latents of
        M simulations the standard error under uniformity is √(4 / (5 M D)), if they were independent.
        """
        return 12.0 * float((self.below - 0.5).square().mean()) - 1.0

    def __str__(self) -> str:
        levels, excess = (0.5, 0.9), self.excess()
        shown = ", ".join(f"{c:.2f} at {v:.1f}" for c, v in zip(self.coverage(levels), levels, strict=True))
        count, size = self.below.shape
        return (
            f"{count} simulations of {size} latents: coverage {shown}; p = {self.asymmetry():.2g} that means are not "
            f"biased; excess {excess:+.2f} (positive: too narrow, negative: too wide)."
        )


@exclusive()
def simulate_calibration(
    make_guide: MakeGuide,
    target: LinearGaussian,
    *,
    simulations: int = 50,
    steps: int = 100,
    learning_rate: float = 0.05,
    num_particles: int = 8,
    seed: int = 0,
) -> Calibration:
    """Fit a guide to data drawn from the model again and again, and see where the true latents fall.

    The target is one whose exact posterior is known, so that what the guide's family must do is known too: one that
    holds every Gaussian is calibrated; a mean field is centred and too narrow where latents depend on each other.
    Each fit begins where the last one ended: of a linear-Gaussian target only the mean depends on the data.

    Args:
        make_guide: model → guide, Gaussian.
        target: with weights as latents.
        simulations: M.
        steps: of Adam in each fit, whose learning rate falls to 0; three times as many in the first.
        learning_rate: of Adam.
        num_particles: draws per step.
        seed: of everything.

    Returns:
        The probabilities, with coverage and tests; :func:`bayes_adapters.testing.picture.calibration_plot` draws it.

    Raises:
        ConfigError: ``simulations`` or ``steps`` below 1, or local latents, which have no fit of their own.
        NotApplicableError: the posterior is no Gaussian.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.sites import Granularity, Part
    >>> target = LinearGaussian(Part.DIAGONAL, Granularity.GLOBAL)
    >>> found = simulate_calibration(guides.MeanField, target, simulations=3, steps=5)
    >>> found.below.shape, bool((found.below >= 0).all())
    (torch.Size([3, 2]), True)
    """
    whole_number("simulations", simulations)
    whole_number("steps", steps)
    if target.local:
        raise ConfigError(
            f"Calibration by simulation takes latents of the data set; a core per {target.granularity.value} is not "
            "fitted but computed from its example. Take LinearGaussian(part, Granularity.GLOBAL)."
        )
    case = Case(make_guide, target.make_model, target.batch, seed=seed)
    model, guide = case.build()
    trained = [p for p in guide.parameters() if p.requires_grad]
    if not trained:
        raise NotApplicableError(f"{type(guide).__name__} has no parameters to fit.")
    elbo = ELBO(model, guide, num_particles=num_particles)
    found = []
    with seeded(seed):
        for number in range(simulations):
            true, targets = target.simulate(seed * 100_003 + number)
            data = replace(case.batch, targets=targets)
            _fit(elbo, data, trained, steps if number else 3 * steps, learning_rate)
            found.append(_below(case, guide, true))
    return Calibration(torch.stack(found))


def _fit(elbo: ELBO, data: Any, trained: list[Any], steps: int, learning_rate: float) -> None:
    optimiser = torch.optim.Adam(trained, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        elbo(data).backward()
        optimiser.step()
        schedule.step()


def _below(case: Case, guide: AdapterGuide, true: Tensor) -> Tensor:
    mean, covariance = gaussian_of(case, guide)
    return torch.special.ndtr((true - mean) / covariance.diagonal(dim1=-2, dim2=-1).sqrt())[0]


def _kolmogorov(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution: 2 Σ (−1)^{k−1} exp(−2 k² x²)."""
    if x < 0.2:
        return 1.0
    return min(1.0, max(0.0, 2.0 * sum((-1) ** (k - 1) * math.exp(-2.0 * (k * x) ** 2) for k in range(1, 50))))
