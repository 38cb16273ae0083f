"""How uncertainty answers as the input gets worse, dose by dose, on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis._dose_checks import check_doses
from bayes_adapters.likelihoods.prediction import PARTS, Prediction

Triple = tuple[float, float, float]
"""A mean, and the ends of its 95 % interval."""


@dataclass(frozen=True)
class DoseResponse:
    """What :func:`dose_response` found; every triple is a mean over examples and the ends of its 95 % interval.

    Args:
        doses: in rising order, D of them.
        parts: "total", "aleatoric", "epistemic" → D triples, nats per example.
        spearman: the same → the mean over examples of Spearman's ρ between dose and the example's uncertainty, −1 to 1.
        nll: D triples of −log p̄(y), nats per example; empty without targets.
        excess: D triples of that minus what the marginal predictor has on the same examples: above 0 it would have been
            better not to look at the input. Empty without ``marginal=``.
    """

    doses: tuple[float, ...]
    parts: Mapping[str, tuple[Triple, ...]]
    spearman: Mapping[str, Triple]
    nll: tuple[Triple, ...] = ()
    excess: tuple[Triple, ...] = field(default=())


def dose_response(
    predictions: Mapping[float, Prediction],
    *,
    marginal: Float[Tensor, " N"] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> DoseResponse:
    """Compare predictions of the same N examples under rising doses of one corruption.

    A dose is any number that rises as the input gets worse: minus the signal-to-noise ratio in dB, a blur's width, the
    share of tokens dropped, 0 and 1 for a context that fits and one of another example. A missing context may follow
    as ``math.inf``: only the order of the doses counts.

    Formula: for example i ``ρ_i`` is the correlation of the ranks of the D doses and of its D uncertainties, ties
    sharing their mean rank; where an uncertainty never changes ρ_i = 0. What is returned is the mean of ρ_i: it asks of
    each example whether *its own* uncertainty rises, so that examples which are always hard do not hide it. With two
    doses it is the share of examples whose uncertainty rises minus that of those whose falls. Intervals are percentiles
    of resampled examples, the same ones at every dose.

    Args:
        predictions: dose → prediction of the N examples, in one order.
        marginal: −log p₀(y) of the N targets, nats, such as ``Marginal.of(training_targets).nll(targets)``.
        draws: resamples of the examples.
        seed: of the resampling.

    Raises:
        ConfigError: fewer than two doses, a dose that is NaN or no number, or ``draws`` below 1.
        DataError: fewer than two examples, other numbers of them, uncertainties per token or NaN, or targets at some
            doses only.

    >>> def says(total):
    ...     total = torch.tensor(total)
    ...     return Prediction(total, total, total, 0 * total, num_samples=1)
    >>> found = dose_response({0.0: says([0.1, 0.5]), 5.0: says([0.2, 0.6]), 10.0: says([0.3, 0.55])})
    >>> found.spearman["total"][0], found.spearman["epistemic"][0]
    (0.75, 0.0)
    """
    doses, ordered = check_doses(predictions, marginal, draws)
    n = len(ordered[0].total)
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(n, (draws, n), generator=rng)
    ranks = _ranks(torch.tensor(doses, dtype=torch.float64)[:, None])
    parts: dict[str, tuple[Triple, ...]] = {}
    spearman: dict[str, Triple] = {}
    for name in PARTS:
        values = torch.stack([getattr(p, name).detach().cpu().double() for p in ordered])
        parts[name] = tuple(_interval(value, rows) for value in values)
        spearman[name] = _interval(_correlation(ranks, _ranks(values)), rows)
    nll: tuple[Triple, ...] = ()
    excess: tuple[Triple, ...] = ()
    scored = [p.log_density for p in ordered if p.log_density is not None]
    if scored:
        losses = [-density.detach().cpu().double() for density in scored]
        nll = tuple(_interval(loss, rows) for loss in losses)
        if marginal is not None:
            excess = tuple(_interval(loss - marginal.detach().cpu().double(), rows) for loss in losses)
    return DoseResponse(doses, parts, spearman, nll, excess)


def _interval(value: Float[Tensor, " N"], rows: Tensor) -> Triple:
    means = value[rows].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return float(value.mean()), low, high


def _ranks(values: Float[Tensor, "D N"]) -> Float[Tensor, "D N"]:
    """Ranks over the first dimension; ties share the mean of theirs."""
    below = (values[None] < values[:, None]).sum(1)
    same = (values[None] == values[:, None]).sum(1)
    return below.double() + (same.double() - 1) / 2


def _correlation(one: Float[Tensor, "D 1"], two: Float[Tensor, "D N"]) -> Float[Tensor, " N"]:
    """Pearson's correlation over the first dimension; 0 where nothing varies."""
    a, b = one - one.mean(0), two - two.mean(0)
    size = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return torch.where(size > 0, (a * b).sum(0) / size.clamp_min(1e-300), 0.0)
