"""Student's t for any number of degrees of freedom, which torch has no distribution function of."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def within(t: float, dof: float) -> float:
    """Return ``P(|T| ≤ t)`` for ν = ``dof``.

    With ``T = √ν tan θ`` it is ``∫₀^{atan(t/√ν)} cos^{ν−1} θ dθ``, over that up to π/2.

    >>> round(within(12.706, 1.0), 4), round(within(2.262, 9.0), 4)
    (0.95, 0.95)
    """
    angle = math.atan(t / math.sqrt(dof))
    nodes = 0.5 * angle * (_NODES + 1)
    part = 0.5 * angle * float(_WEIGHTS @ np.exp((dof - 1) * np.log(np.cos(nodes))))
    return min(1.0, part * 2 / math.sqrt(math.pi) * math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)))


def quantile(level: float, dof: float) -> float:
    """Return t with ``P(|T| ≤ t) = level``, for ν ≥ 1.

    >>> [round(quantile(0.95, dof), 3) for dof in (1.0, 4.0, 1e9)]
    [12.706, 2.776, 1.96]
    """
    # P(|T| ≤ t) is concave in t, and its tails are wider than the normal's: Newton's steps come from below and never
    # go too far.
    t = normal(level)
    constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
    for _ in range(100):
        density = 2 * math.exp(constant - (dof + 1) / 2 * math.log1p(t * t / dof))
        step = (level - within(t, dof)) / density
        t += step
        if abs(step) < 1e-10 * t:
            break
    return t


def normal(level: float) -> float:
    """Return z with ``P(|Z| ≤ z) = level`` of the standard normal.

    >>> round(normal(0.95), 2)
    1.96
    """
    return NormalDist().inv_cdf((1 + level) / 2)
