"""Retrieval: how far up the right candidates of a query stand, and whether to answer at all.

``scores`` are of Q queries and G candidates, (Q, G), larger is better; ``relevant`` says which candidates are right,
bool (Q, G), or names the one that is, int64 (Q,). A query may have several right candidates: the best of them counts.
Candidates of equal score are averaged over all their orders, so that a scorer that knows nothing has the recall of
chance, k/G with one right candidate, and not 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from bayes_adapters.analysis._retrieval_checks import checked_relevance, require_cutoffs, require_group_numbers


class Retrieval(NamedTuple):
    """Recall and ranks in both directions.

    Args:
        recall: k → share of queries with a right candidate among the first k.
        median_rank: of the best right candidate, from 1.
        recall_back: k → of candidates as queries for the queries.
        median_rank_back: likewise.
    """

    recall: dict[int, float]
    median_rank: float
    recall_back: dict[int, float]
    median_rank_back: float


def same_group(queries: Tensor, gallery: Tensor) -> Bool[Tensor, "Q G"]:
    """Return which candidates are right: those whose group has the query's number.

    Args:
        queries: numbers of groups, int64 (Q,).
        gallery: likewise, (G,).

    Raises:
        DataError: what are no numbers of groups.

    >>> import torch
    >>> same_group(torch.tensor([4, 5]), torch.tensor([5, 4, 5]))
    tensor([[False,  True, False],
            [ True, False,  True]])
    """
    require_group_numbers(queries, gallery)
    return queries[:, None] == gallery[None, :].to(queries.device)


def recall_at(scores: Tensor, relevant: Tensor, k: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Return k → the share of queries that have a right candidate among the first k.

    With a candidates before the best right one, m right ones at its score and n wrong ones at the same score, query q
    counts with ``1 − C(n, k−a) / C(n+m, k−a)``, the chance of a random order of the tied: 0 for k ≤ a.

    Args:
        scores: shape (Q, G), any real scale, such as ``similarities(...).mean`` or ``.probs``.
        relevant: bool (Q, G), see :func:`same_group`; or the number of the right candidate, int64 (Q,).
        k: whole numbers from 1 to G; a larger one counts as G.

    Raises:
        DataError: shapes that do not fit, NaN, a query without a right candidate, k below 1.

    >>> import torch
    >>> scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    >>> recall_at(scores, torch.tensor([0, 1]), k=(1, 2))
    {1: 0.5, 2: 1.0}
    >>> round(recall_at(torch.zeros(1, 4), torch.tensor([2]), k=(1,))[1], 4)  # nothing is known
    0.25
    """
    require_cutoffs(k)
    s, right = checked_relevance(scores, relevant)
    before, rights, wrongs = _ties(s, right)
    found = {}
    for most in k:
        chances = [_among(int(most) - int(a), int(m), int(n)) for a, m, n in zip(before, rights, wrongs, strict=True)]
        found[int(most)] = math.fsum(chances) / len(chances)
    return found


def ranks(scores: Tensor, relevant: Tensor) -> Float[Tensor, " Q"]:
    """Return the rank of each query's best right candidate, from 1; where it is tied, the expected ``a + 1 + n/(m+1)``.

    Args:
        scores: see :func:`recall_at`.
        relevant: likewise.

    >>> import torch
    >>> ranks(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]]), torch.tensor([2, 0]))
    tensor([2., 2.], dtype=torch.float64)
    """
    before, rights, wrongs = _ties(*checked_relevance(scores, relevant))
    return before + 1 + wrongs / (rights + 1)


def retrieval(scores: Tensor, relevant: Tensor, k: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """Return recall and median rank of queries for candidates, and of candidates for queries.

    Args:
        scores: shape (Q, G). Backwards they rank queries of one candidate, so they have to be comparable between
            queries: scores are (``similarities(...).mean``), probabilities normalised over candidates are not.
        relevant: bool (Q, G), or int64 (Q,). Candidates that are right for no query are left out backwards.
        k: see :func:`recall_at`.

    >>> import torch
    >>> found = retrieval(torch.tensor([[3.0, 1.0], [2.0, 2.5]]), torch.tensor([0, 1]), k=(1,))
    >>> found.recall, found.recall_back, found.median_rank
    ({1: 1.0}, {1: 1.0}, 1.0)
    """
    s, right = checked_relevance(scores, relevant)
    asked = right.any(0)
    back = (s.mT[asked], right.mT[asked])
    medians = [float(ranks(*pair).quantile(0.5)) for pair in ((s, right), back)]
    return Retrieval(recall_at(s, right, k), medians[0], recall_at(*back, k), medians[1])


def _ties(s: Float[Tensor, "Q G"], right: Bool[Tensor, "Q G"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, m and n of :func:`recall_at` for every query, float64."""
    best = s.masked_fill(~right, -math.inf).amax(-1, keepdim=True)
    tied = s == best
    before, rights, wrongs = ((s > best).sum(-1), (tied & right).sum(-1), (tied & ~right).sum(-1))
    return before.double(), rights.double(), wrongs.double()


def _among(places: int, rights: int, wrongs: int) -> float:
    """Return the chance that one of ``rights`` stands in the first ``places`` of a random order of both."""
    if places <= 0:
        return 0.0
    if places > wrongs:
        return 1.0
    return 1.0 - math.comb(wrongs, places) / math.comb(wrongs + rights, places)
