"""The split of predictive uncertainty by its definition, from draws, with the distributions of torch in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributions as td

from bayes_adapters import Prediction
from bayes_adapters.likelihoods import Likelihood


class Parts(NamedTuple):
    """Total, aleatoric and epistemic, in nats, the draws' axis gone."""

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def of_classes(probs: Tensor) -> Parts:
    """H[p̄], the mean of H[p_s], and the mutual information as the mean of KL(p_s ‖ p̄); ``probs`` (S, …, C)."""
    each = td.Categorical(probs.double())
    mean = td.Categorical(each.probs.mean(0, keepdim=True))
    return Parts(mean.entropy()[0], each.entropy().mean(0), td.kl_divergence(each, mean).mean(0))


def of_labels(probs: Tensor) -> Parts:
    """The same of P(y = 1), shape (S, …)."""
    return of_classes(torch.stack([1 - probs.double(), probs.double()], -1))


def of_reals(each: td.Distribution) -> Parts:
    """Of a family of location and scale, batch shape (S, …): the mixture counts as a member that has its variance.

    The entropy of a member is a constant plus the log of its standard deviation, so the epistemic part is
    ``½ (log v − mean log v_s)`` with the variance v of the mixture.
    """
    normals = td.Normal(each.mean.double().movedim(0, -1), each.stddev.double().movedim(0, -1))
    mixture = td.MixtureSameFamily(td.Categorical(torch.ones_like(normals.loc)), normals)
    epistemic = 0.5 * (mixture.variance.log() - 2 * each.stddev.double().log().mean(0))
    aleatoric = each.entropy().double().mean(0)
    return Parts(aleatoric + epistemic, aleatoric, epistemic)


def of_draws(fn: td.Distribution) -> Parts:
    """Of what a likelihood's ``distribution`` returned, batch shape (S, …)."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if isinstance(fn, td.Bernoulli):
        return of_labels(fn.probs)
    return of_classes(fn.probs) if isinstance(fn, td.Categorical) else of_reals(fn)


@torch.no_grad()
def averaged(likelihood: Likelihood, outputs: Tensor) -> Prediction:
    """What ``likelihood`` makes of all draws of its ``outputs`` (S, B, K) at once."""
    return likelihood.predict(likelihood.summarise(likelihood.distribution(outputs)), len(outputs))
