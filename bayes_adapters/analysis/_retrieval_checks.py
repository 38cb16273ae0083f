"""What metrics of retrieval refuse, and their arguments as they compute with them: float64, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayes_adapters.errors import DataError, whole_number


def require_group_numbers(queries: Tensor, gallery: Tensor) -> None:
    """Raise :class:`DataError` unless both are numbers of groups, one for each example."""
    for name, value in (("queries", queries), ("gallery", gallery)):
        if value.dim() != 1 or value.is_floating_point() or value.dtype == torch.bool:
            raise DataError(
                f"The numbers of groups of the {name} must be int64 of shape (n,); got {value.dtype} of shape "
                f"{tuple(value.shape)}."
            )


def require_cutoffs(k: Sequence[int]) -> None:
    """Raise an error unless every k is a whole number from 1 on, and there is one."""
    for most in k:
        whole_number("k", most)
    if not len(k):
        raise DataError("k must name at least one number of candidates, such as (1, 5, 10).")


def checked_scores(scores: Tensor) -> Float[Tensor, "Q G"]:
    """Return the scores; raise :class:`DataError` unless they are numbers of shape (Q, G)."""
    s = scores.detach().cpu().double()
    if s.dim() != 2 or 0 in s.shape:
        raise DataError(
            f"scores must have shape (Q, G), queries by candidates; got {tuple(s.shape)}. Is the sample dimension "
            "still there? Average over it."
        )
    if bool(s.isnan().any()):
        raise DataError(f"scores of the queries {s.isnan().any(1).nonzero().flatten().tolist()[:8]} are NaN.")
    return s


def relevance(scores: Tensor, relevant: Tensor) -> Bool[Tensor, "Q G"]:
    """Return which candidates are right, bool (Q, G); raise :class:`DataError` where that does not fit the scores."""
    count, size = scores.shape
    r = relevant.detach().cpu()
    if r.dtype != torch.bool and r.dim() == 1 and not r.is_floating_point() and len(r) == count:
        if bool(((r < 0) | (r >= size)).any()):
            raise DataError(
                f"relevant names the candidates {r[(r < 0) | (r >= size)].tolist()[:8]}; there are {size}, from 0. For "
                "numbers of groups take same_group(queries, gallery)."
            )
        return r[:, None] == torch.arange(size, device="cpu")
    if r.dtype != torch.bool or r.shape != scores.shape:
        raise DataError(
            f"relevant must be bool (Q, G) = {(count, size)}, or the number of each query's right candidate, int64 "
            f"(Q,); got {r.dtype} of shape {tuple(r.shape)}. same_group(queries, gallery) makes it of "
            "numbers of groups."
        )
    return r


def checked_relevance(scores: Tensor, relevant: Tensor) -> tuple[Float[Tensor, "Q G"], Bool[Tensor, "Q G"]]:
    """Return both; raise :class:`DataError` where they do not fit, or a query has no right candidate."""
    s = checked_scores(scores)
    r = relevance(s, relevant)
    none = (~r.any(1)).nonzero().flatten().tolist()
    if none:
        raise DataError(
            f"The queries {none[:8]} have no right candidate, so no rank. Leave them out, or judge 'no match' by "
            "bayes_adapters.analysis.no_match."
        )
    return s, r


def checked_matches(scores: Tensor, relevant: Tensor) -> tuple[Float[Tensor, "Q G"], Bool[Tensor, "Q G"]]:
    """Return both, for queries of which some may have no right candidate."""
    s = checked_scores(scores)
    return s, relevance(s, relevant)


def require_draws(samples: Tensor) -> Float[Tensor, "S Q G"]:
    """Return scores of S draws; raise :class:`DataError` for another shape, or numbers that are not finite."""
    if samples.dim() != 3 or 0 in samples.shape or not bool(samples.isfinite().all()):
        raise DataError(
            f"samples must be finite scores of shape (S, Q, G), as similarities(..., return_samples=True) has them; "
            f"got {tuple(samples.shape)}. One table of scores is scores[None]."
        )
    return samples.detach().cpu().double()


def require_both_kinds(right: Bool[Tensor, "Q G"]) -> None:
    """Raise :class:`DataError` unless some queries have a right candidate and others none."""
    some = right.any(1)
    if bool(some.all()) or not bool(some.any()):
        raise DataError(
            f"{int(some.sum())} of {len(some)} held-out queries have a right candidate: how probable 'no match' is can "
            "be fitted only with queries of both kinds. Take the right candidates of some out of the gallery."
        )
