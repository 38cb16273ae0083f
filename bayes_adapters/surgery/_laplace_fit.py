"""From a curvature to a posterior: the prior's precision, the log of what was found, and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.distributions import CurvedGaussian, CurvedMatrices
from bayes_adapters.errors import choice, positive_number
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.linearised_outputs import Linearisation
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.surgery import _evidence
from bayes_adapters.surgery._curvature import Dense, Diagonal, LowRank, Scores, Structure
from bayes_adapters.surgery._kronecker import Kronecker
from bayes_adapters.surgery._laplace_checks import require_validation, warn_unbounded, warn_untrained

VALIDATED = tuple(10.0 ** (power / 2) for power in range(-8, 9))
"""Prior precisions tried on validation data: 10⁻⁴ … 10⁴, two a decade."""
DRAWS = 64
"""Draws of weights that validation takes."""


class PriorPrecision(StrEnum):
    """By what λ is chosen."""

    EVIDENCE = "evidence"
    """The greatest marginal likelihood of the training data: no held-out examples are needed."""
    VALIDATION = "validation"
    """The smallest negative log predictive density of held-out examples."""


@dataclass(frozen=True)
class LaplaceLog:
    """What a Laplace approximation found.

    Args:
        structure: which part of the curvature was kept.
        size: D, the number of weights.
        num_examples: how many examples the curvature was summed over; it stands for ``num_data``.
        num_data: N.
        prior_precision: λ.
        log_likelihood: Σ log p(y | x, m) over N examples, nats.
        log_evidence: log Z(λ), nats.
        determined: γ, how many directions the data determine, of D.
        kept: the share of the curvature's trace that the structure holds; below 1 the posterior is wider than the exact
            one in the directions left out.
        shift: √(gᵀ Σ g / max(γ, 1)), g being the gradient of the log-likelihood or of the log-joint, whichever gives
            less: how many posterior standard deviations the optimum lies away, per determined direction. Near 0 there.
        searched: (λ, criterion) pairs that were tried on validation data, the criterion in nats per example.
    """

    structure: str
    size: int
    num_examples: int
    num_data: int
    prior_precision: float
    log_likelihood: float
    log_evidence: float
    determined: float
    kept: float
    shift: float
    searched: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON, for ``save(..., task=…)`` or a report."""
        return asdict(self) | {"searched": [list(pair) for pair in self.searched]}


def read_precision(prior_precision: PriorPrecision | str | float, validation: object) -> PriorPrecision | float:
    """Return λ, or by what it is chosen; raise :class:`ConfigError` for neither, or without its validation data."""
    if isinstance(prior_precision, str):
        prior_precision = choice(PriorPrecision, "prior_precision", prior_precision)
    else:
        positive_number("prior_precision", prior_precision)
    require_validation(prior_precision, validation)
    return prior_precision


class Found:
    """A curvature around a point, in the prior's unit.

    Args:
        structure: which part was kept.
        curvature: of −log p(data | w), in units of S.
        scores: log-likelihood and gradient.
        loc: m, shape (D,), float64.
        prior: mean and standard deviation of every weight, shape (D,).
        num_data: N; None is the number of examples.
    """

    def __init__(
        self,
        structure: Structure,
        curvature: Diagonal | Dense | LowRank | Kronecker,
        scores: Scores,
        loc: Float[Tensor, " D"],
        prior: tuple[Float[Tensor, " D"], Float[Tensor, " D"]],
        num_data: int | None,
    ) -> None:
        self.structure, self.scores, self.loc, self.kept = structure, scores, loc, curvature.kept
        self.mean, self.unit = prior
        self.num_data = num_data or scores.count
        self.scale = self.num_data / scores.count
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self.sides: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.diagonal = self.scale * curvature.diagonal if isinstance(curvature, Diagonal) else None
        if isinstance(curvature, Kronecker):
            self.sides = [(rows, self.scale * g, columns, a) for rows, g, columns, a in curvature.sides()]
            self.deviation = curvature.unit
            self.bent = torch.cat([(g[:, None] * a).flatten() for _, g, _, a in self.sides])
        elif self.diagonal is None:
            self.pairs = [(directions, self.scale * along) for directions, along in curvature.eigen()]
            self.bent = torch.cat([along for _, along in self.pairs])
        else:
            self.bent = self.diagonal

    def blocks(self, ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Return (first, last, number of directions) of each block."""
        if self.diagonal is not None:
            return []
        return [[first, last, len(along)] for (first, last), (_, along) in zip(ranges, self.pairs, strict=True)]

    def settle(
        self,
        gaussian: CurvedGaussian | CurvedMatrices,
        prior_precision: PriorPrecision | float,
        validated: Callable[[], list[float]],
        stacklevel: int,
    ) -> LaplaceLog:
        """Place the Gaussian, choose its λ, and return what was found.

        Args:
            gaussian: of these blocks.
            prior_precision: λ, or by what it is chosen.
            validated: returns the criterion for each λ of :data:`VALIDATED`.
            stacklevel: of warnings.
        """
        if isinstance(gaussian, CurvedMatrices):
            gaussian.place(self.loc, self.deviation, self.sides)
        else:
            gaussian.place(self.loc, self.unit, self.diagonal, self.pairs)
        offset = (self.loc - self.mean) / self.unit
        norm, searched = float(offset.square().sum()), []
        if prior_precision == PriorPrecision.EVIDENCE:
            precision = _evidence.maximum(norm, self.bent)
            warn_unbounded(_evidence.GRID, precision, stacklevel)
        elif prior_precision == PriorPrecision.VALIDATION:
            searched = list(zip(VALIDATED, validated(), strict=True))
            precision = min(searched, key=lambda pair: pair[1])[0]
            warn_unbounded(VALIDATED, precision, stacklevel)
        else:
            precision = float(prior_precision)
        gaussian.rescale(precision)
        gamma = _evidence.determined(precision, self.bent)
        shift = math.sqrt(self._newton(gaussian, offset / self.unit, precision) / max(gamma, 1.0))
        warn_untrained(shift, stacklevel)
        log_likelihood = self.scale * self.scores.log_likelihood
        evidence = _evidence.log_evidence(precision, log_likelihood, norm, self.bent)
        counted = (self.structure.value, len(self.loc), self.scores.count, self.num_data)
        return LaplaceLog(*counted, precision, log_likelihood, evidence, gamma, self.kept, shift, tuple(searched))

    def _newton(self, gaussian: CurvedGaussian | CurvedMatrices, pull: Float[Tensor, " D"], precision: float) -> float:
        """gᵀ Σ g, the squared length of a Newton step, in posterior standard deviations.

        g is the gradient of the log-likelihood or of the log-joint, whichever is nearer to its optimum.
        """
        likelihood = self.scale * self.scores.gradient
        both = torch.stack([likelihood, likelihood - precision * pull]).to(gaussian.get_buffer("loc"))
        return float(float64(gaussian.projected(both)).square().sum(-1).min())


def draws_scored(
    model: AdapterModel,
    guide: AdapterGuide,
    gaussian: CurvedGaussian | CurvedMatrices,
    held: list[Batch],
    draws: int | None,
    seed: int,
    linearised: Linearisation | None = None,
) -> list[float]:
    """The negative log density of held-out examples, nats per example, for every λ of :data:`VALIDATED`."""
    how: Any = {"num_samples": draws, "seed": seed, "linearised": linearised or False}
    if linearised is None:
        how["num_samples"] = draws or DRAWS
    scores = []
    for precision in VALIDATED:
        gaussian.rescale(precision)
        found: Any = predict(model, guide, held, **how).log_density
        scores.append(-float(float64(found).mean()))
    return scores
