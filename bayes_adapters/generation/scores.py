"""One number per text of what a posterior says of it, for whoever compares uncertainties of generations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.generation._checks import require_averaged
from bayes_adapters.generation.generation import Generation
from bayes_adapters.generation.semantic import semantic_entropy


def scores(
    said: Generation,
    hypotheses: Generation | None = None,
    equivalent: Callable[[str, str], bool] | None = None,
) -> dict[str, Float[Tensor, " B"]]:
    """Return name → a score of each of B texts, nats, larger where the posterior is less sure.

    ``total_mean``, ``total_sum``, ``epistemic_mean`` and ``epistemic_sum`` are means and sums over a text's tokens.
    ``information`` is what the text y tells of the draw, ``KL(p(s | y) ‖ 1/S) = log S + Σ_s w_s log w_s`` with
    ``w_s = p_s(y) / Σ_r p_r(y)``: over texts that the mixture ``(1/S) Σ_s p_s`` writes, its mean is the mutual
    information of text and draw. It is between 0 and log S. ``nll`` is −log of that mixture at y. With
    ``hypotheses``, ``semantic_entropy`` is that of the S texts of each prompt.

    Args:
        said: of ``writing="average"``.
        hypotheses: of ``writing="each"`` for the same prompts, with a tokenizer.
        equivalent: as of :func:`semantic_entropy`; None: equal but for case, and for space around them.

    Raises:
        ConfigError: ``said`` is of ``"each"``, ``hypotheses`` are not, or they are of other prompts.

    >>> from bayes_adapters.generation import Writing
    >>> log_p = torch.tensor([[[0.9]], [[0.1]]]).log()  # two draws, one text of one token
    >>> one, yes = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> text = Generation(yes.long(), yes, one, one / 2, one / 2, 0 * one, log_p, 2, Writing.AVERAGE)
    >>> {name: round(float(value), 3) for name, value in scores(text).items()}["information"]
    0.368
    """
    require_averaged(said, hypotheses)
    found = {f"{part}_mean": said.mean(part) for part in ("total", "epistemic")}
    found |= {f"{part}_sum": getattr(said, part).sum(-1) for part in ("total", "epistemic")}
    weights = said.draw_log_probs.sum(-1).softmax(0)
    found["information"] = (math.log(len(weights)) - torch.special.entr(weights).sum(0)).clamp_min(0.0)
    found["nll"] = -said.mixture_log_prob
    if hypotheses is not None:
        same = _same if equivalent is None else equivalent
        entropies = [semantic_entropy(texts, same).entropy for texts in hypotheses.hypotheses()]
        found["semantic_entropy"] = torch.tensor(entropies)
    return found


def _same(a: str, b: str) -> bool:
    return a.strip().casefold() == b.strip().casefold()
