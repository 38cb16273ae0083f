"""Semantic entropy: how many different things S texts say, however they word them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.generation._checks import require_texts


class SemanticEntropy(NamedTuple):
    """The entropy of what texts mean, and their clusters.

    Args:
        entropy: nats, 0 … log S.
        clusters: numbers of the texts of each meaning, in the order of their first texts.
        shares: probability of each cluster.
    """

    entropy: float
    clusters: list[list[int]]
    shares: list[float]


def semantic_entropy(
    texts: Sequence[str], equivalent: Callable[[str, str], bool], log_probs: Float[Tensor, " S"] | None = None
) -> SemanticEntropy:
    """Return ``−Σ_c p(c) log p(c)`` over clusters c of texts that mean the same.

    A text joins the first cluster to whose first text it is ``equivalent``, both ways; else it begins another. Without
    ``log_probs`` p(c) is the share of texts in c, which for texts that were sampled estimates the probability of its
    meaning. With them ``p(c) = Σ_{s ∈ c} p(s) / Σ_s p(s)``, a text that was written several times counting once, by the
    mean of its p: an estimate with less noise where texts are short and few, and a biased one where many likely texts
    are missing.

    Args:
        texts: S hypotheses of one prompt, such as a row of :meth:`Generation.hypotheses`.
        equivalent: whether two texts mean the same: equality of what an answer's parser finds, say, or entailment by a
            classifier.
        log_probs: each text's log p, nats; divided by its length for texts of unequal lengths, as you like.

    Raises:
        DataError: no text, another number of ``log_probs``, or NaN, +∞, or nothing but −∞ among them.

    Source: Kuhn, Gal & Farquhar 2023, arXiv 2302.09664; Farquhar et al. 2024, doi 10.1038/s41586-024-07421-0.

    >>> found = semantic_entropy(["Paris", "paris.", "Rome", "Paris"], lambda a, b: a[:4].lower() == b[:4].lower())
    >>> found.clusters, round(found.entropy, 3)  # shares ¾ and ¼
    ([[0, 1, 3], [2]], 0.562)
    """
    require_texts(texts, log_probs)
    clusters: list[list[int]] = []
    for number, text in enumerate(texts):
        for cluster in clusters:
            first = texts[cluster[0]]
            if equivalent(first, text) and equivalent(text, first):
                cluster.append(number)
                break
        else:
            clusters.append([number])
    if log_probs is None:
        weights = torch.tensor([float(len(cluster)) for cluster in clusters], dtype=torch.float64)
    else:
        probs = (log_probs.double().cpu() - log_probs.max().item()).exp()
        each = [_distinct([(texts[number], float(probs[number])) for number in cluster]) for cluster in clusters]
        weights = torch.tensor(each, dtype=torch.float64)
    shares = weights / weights.sum()
    return SemanticEntropy(float(torch.special.entr(shares).sum()), clusters, shares.tolist())


def _distinct(found: Sequence[tuple[str, float]]) -> float:
    """The sum over distinct texts of each one's mean probability: draws differ in what they give one text."""
    own: dict[str, list[float]] = {}
    for text, prob in found:
        own.setdefault(text, []).append(prob)
    return sum(sum(probs) / len(probs) for probs in own.values())
