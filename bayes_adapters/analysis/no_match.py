"""'No match': queries whose right partner is not in the gallery, by a threshold at a risk or as a candidate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayes_adapters.analysis._conformal_checks import require_limit, require_share
from bayes_adapters.analysis._retrieval_checks import (
    checked_matches,
    checked_scores,
    relevance,
    require_both_kinds,
    require_draws,
)
from bayes_adapters.analysis.selection import selective
from bayes_adapters.errors import ConfigError

NO_MATCH = -1
"""The number that stands for 'none of the candidates'."""


@dataclass(frozen=True)
class MatchThreshold:
    """Name the best candidate where its score is at least t, and say 'no match' below.

    Of all queries like the held-out ones, the share that is answered by a wrong candidate is at most ``risk``::

        P(best score ≥ t and the best candidate is wrong) ≤ risk

    by conformal risk control (:func:`bayes_adapters.analysis.selection.selective`). Wrong is every answer to a query
    without a partner in the gallery; so hold out both kinds, in the shares that will come. The promise is about the
    average over queries *of this gallery's size*: the best of more candidates has a higher score.

    Args:
        threshold: t, in units of the score; None where nothing can be answered at this risk.
        risk: between 0 and 1.

    >>> scores = torch.linspace(0, 1, 20)[:, None] * torch.tensor([1.0, 0.5])
    >>> relevant = torch.tensor([[False, False]] * 5 + [[True, False]] * 15)  # the five lowest have no partner
    >>> limit = MatchThreshold.fit(scores, relevant, risk=0.1)
    >>> limit(torch.tensor([[0.1, 0.0], [0.2, 0.9]]))
    tensor([-1,  1])
    """

    name: ClassVar[str] = "match_threshold"
    threshold: float | None
    risk: float

    def __post_init__(self) -> None:
        require_share("risk", self.risk)
        require_limit(self.threshold)

    @classmethod
    def fit(cls, scores: Tensor, relevant: Tensor, *, risk: float = 0.1) -> MatchThreshold:
        """Return the threshold of held-out queries.

        Args:
            scores: shape (Q, G): ``similarities(...).mean``, or ``.probs``, or those of :class:`NullCandidate` without
                its column; larger is better.
            relevant: bool (Q, G); a row without any is a query without a partner.
            risk: the share of all queries that may be answered by a wrong candidate.

        Raises:
            ConfigError: risk out of range.
            DataError: fewer than 1/risk − 1 queries, or shapes that do not fit.
        """
        s, right = checked_matches(scores, relevant)
        best, place = s.max(-1)
        wrong = ~right.gather(-1, place[:, None])[:, 0]
        found = selective(-best, wrong, risk=risk)
        return cls(None if found.threshold == -math.inf else -found.threshold, risk)

    def __call__(self, scores: Tensor) -> Int[Tensor, " Q"]:
        """Return the number of each query's candidate, or −1: no match; on the CPU."""
        best, place = checked_scores(scores).max(-1)
        answered = torch.zeros_like(place) > 0 if self.threshold is None else best >= self.threshold
        return place.masked_fill(~answered, NO_MATCH)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NullCandidate:
    """'No match' as a candidate of its own, with the score z: ``p = (1/S) Σ_s softmax([s_q1 … s_qG, z])``.

    Where pairs match independently with log-odds f (a :class:`~bayes_adapters.likelihoods.Bernoulli` on pairs), at most
    one of a query's candidates being right, z = 0 is exact: ``P(none) = 1 / (1 + Σ_g e^{f_g})``. Scores of embeddings
    have no such zero, so z is fitted: it maximises the likelihood of held-out queries, some with a partner (the sum
    over its right candidates) and some without. P(none) is then the probability that :class:`MatchThreshold`, or a
    decision with costs, can be built on. It depends on G: fit it at the size of gallery that will come.

    Args:
        score: z.

    >>> null = NullCandidate(0.0)
    >>> null(torch.tensor([[[2.0, -1.0]], [[1.0, -1.0]]]))  # two draws, one query, two candidates; the last is 'none'
    tensor([[0.7545, 0.0660, 0.1795]], dtype=torch.float64)
    """

    name: ClassVar[str] = "null_candidate"
    score: float

    def __post_init__(self) -> None:
        if isinstance(self.score, bool) or not isinstance(self.score, int | float) or not math.isfinite(self.score):
            raise ConfigError(f"score must be a finite number; got {self.score!r}.")

    @classmethod
    def fit(cls, samples: Tensor, relevant: Tensor) -> NullCandidate:
        """Return the z under which held-out queries are most probable.

        Args:
            samples: shape (S, Q, G), the scores of each draw; one table is ``scores[None]``.
            relevant: bool (Q, G); a row without any is a query without a partner.

        Raises:
            DataError: shapes that do not fit, or queries of one kind only.
        """
        scores = require_draws(samples)
        right = relevance(scores[0], relevant)
        require_both_kinds(right)
        every = scores.logsumexp(-1)
        chosen = scores.masked_fill(~right, -math.inf).logsumexp(-1)
        none = ~right.any(-1)

        def log_likelihood(z: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
            whole = torch.logaddexp(every[..., None], z)
            own = torch.where(none[:, None], z, chosen[..., None]) - whole
            return own.logsumexp(0).sum(0)  # the average over draws, but for a constant

        low, high = float(every.min()) - 20.0, float(every.max()) + 20.0
        for _ in range(12):  # one maximum for S = 1; a grid first, should draws make several
            grid = torch.linspace(low, high, 65, dtype=torch.float64)
            best, step = float(grid[log_likelihood(grid).argmax()]), (high - low) / 64
            low, high = best - step, best + step
        return cls(best)

    def __call__(self, samples: Tensor) -> Float[Tensor, "Q G_and_none"]:
        """Return probabilities of the candidates and, in the last column, of none, (Q, G + 1), float64, on the CPU."""
        scores = require_draws(samples)
        null = scores.new_full((*scores.shape[:2], 1), self.score)
        return torch.cat([scores, null], -1).softmax(-1).mean(0)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return asdict(self)
