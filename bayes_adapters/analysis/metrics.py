"""Metrics of probabilities and uncertainties: plain functions on tensors, entropies and losses in nats.

``probs`` is P(y=1) of shape (N,) or class probabilities of shape (N, C), ``targets`` are class numbers of shape (N,)
(int, bool or whole floats). Metrics are computed in float64 (torchmetrics' AUROC ends in float32) on the CPU, without
gradients, and returned as ``float``.
The predicted class is the most probable one; on a tie the lowest, so P(y=1) = 0.5 predicts 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayes_adapters.analysis._checks import (
    checked_classes,
    checked_confidence,
    checked_scores,
    require_binary,
    require_clamp,
    require_class,
    require_probabilities,
    require_samples,
)
from bayes_adapters.devices import float64


class Decomposition(NamedTuple):
    """Uncertainty in nats, each of shape (N, …): ``total = aleatoric + epistemic``."""

    total: Float[Tensor, "..."]
    aleatoric: Float[Tensor, "..."]
    epistemic: Float[Tensor, "..."]


class ReliabilityBins(NamedTuple):
    """Mean confidence, accuracy (both NaN in an empty bin) and number of examples, each of shape (bins,)."""

    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]
    count: Int[Tensor, " bins"]  # type: ignore[assignment]  # hides tuple.count


def correct(probs: Tensor, targets: Tensor) -> Bool[Tensor, " N"]:
    """Return for each example whether its most probable class is the target, shape (N,), bool, on the CPU.

    >>> correct(torch.tensor([0.9, 0.6]), torch.tensor([1, 0]))
    tensor([ True, False])
    """
    p, y = checked_classes(probs, targets)
    return p.argmax(-1) == y


def accuracy(probs: Tensor, targets: Tensor) -> float:
    """Return the share of examples whose most probable class is the target, from 0 to 1.

    Args:
        probs: P(y=1), shape (N,), or class probabilities, shape (N, C), floating point.
        targets: class numbers, shape (N,).

    >>> accuracy(torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1, 0, 0]))  # doctest: +ELLIPSIS
    0.666...
    """
    return float(correct(probs, targets).double().mean())


def nll(probs: Tensor, targets: Tensor, *, log: bool = False, clamp: float = 1e-7) -> float:
    """Return the mean negative log-likelihood ``-log max(p_y, clamp)`` in nats.

    Args:
        probs: P(y=1), shape (N,), or class probabilities, shape (N, C); their natural logarithms with ``log=True``,
            which keeps what a float32 probability near 1 has lost.
        targets: class numbers, shape (N,).
        log: whether ``probs`` are log-probabilities.
        clamp: the smallest p_y that counts, so one certain mistake costs at most -log(1e-7) = 16.1 nats.

    >>> round(nll(torch.tensor([0.5, 0.5]), torch.tensor([1, 0])), 4)
    0.6931
    >>> round(nll(torch.tensor([0.0]), torch.tensor([1])), 2)
    16.12
    """
    require_clamp(clamp)
    if log:
        logs = float64(probs.detach()).cpu()
        _, y = checked_classes(logs.exp(), targets)
        logs = torch.stack([torch.log(-torch.expm1(logs.clamp(max=0))), logs], -1) if logs.dim() == 1 else logs
    else:
        p, y = checked_classes(probs, targets)
        logs = p.log()
    floor = float(torch.tensor(clamp, dtype=torch.float64).log())
    return float(-logs.gather(-1, y[:, None]).clamp(min=floor, max=0).mean())


def brier(probs: Tensor, targets: Tensor) -> float:
    """Return the Brier score: the mean over examples of ``sum_c (p_c - [y = c])^2``, from 0 (best) to 2.

    P(y=1) of shape (N,) counts as two classes, so the score is twice the one-sided ``(p - y)^2``.

    Source: Brier (1950), Verification of forecasts expressed in terms of probability.

    >>> brier(torch.tensor([1.0, 0.0]), torch.tensor([0, 1]))
    2.0
    """
    p, y = checked_classes(probs, targets)
    return float((p - torch.nn.functional.one_hot(y, p.shape[1])).square().sum(-1).mean())


def ece(probs: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error ``sum_b n_b/N |accuracy_b - confidence_b|``, from 0 to 1.

    Confidence is the largest class probability (max(p, 1-p) for binary P(y=1)), in ``bins`` equal-width bins on [0, 1],
    L1 norm; computed by ``torchmetrics``. Confidence 1 belongs to the last bin, where torchmetrics would add a 16th.

    Source: Naeini et al. (2015); Guo et al. (2017), arXiv 1706.04599, Eq. 3.

    >>> round(ece(torch.tensor([0.8, 0.8, 0.8, 0.8]), torch.tensor([1, 1, 1, 0])), 4)
    0.05
    """
    from torchmetrics.functional.classification import binary_calibration_error

    confidence, right = checked_confidence(probs, targets, bins)
    return float(binary_calibration_error(confidence, right.long(), n_bins=bins, norm="l1"))


def reliability_bins(probs: Tensor, targets: Tensor, bins: int = 15) -> ReliabilityBins:
    """Return confidence, accuracy and count of each of the equal-width bins of :func:`ece`.

    >>> reliability_bins(torch.tensor([0.9, 0.3, 0.2]), torch.tensor([1, 0, 1]), bins=4).count
    tensor([0, 0, 1, 2])
    """
    confidence, right = checked_confidence(probs, targets, bins)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device="cpu")
    where = torch.bucketize(confidence, edges, right=True) - 1
    count = torch.bincount(where, minlength=bins)
    sums = [torch.bincount(where, v, minlength=bins) for v in (confidence, right.double())]
    return ReliabilityBins(sums[0] / count, sums[1] / count, count)


def auc(probs: Tensor, targets: Tensor, positive: int = 1) -> float:
    """Return the AUROC of the probability of class ``positive`` against the rest; NaN when only one side is present.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.75
    """
    p, y = checked_classes(probs, targets)
    require_class(positive, p.shape[1])
    return auroc(p[:, positive], y == positive)


def auroc(score: Tensor, positives: Tensor) -> float:
    """Return ``P(score of a positive > score of a negative)``, ties counting one half; NaN without both kinds.

    Args:
        score: shape (N,), any real scale: an uncertainty, to detect errors or out-of-distribution examples.
        positives: shape (N,), bool (or 0/1): what should score high (an error, an out-of-distribution example).

    >>> auroc(torch.tensor([0.1, 0.2, 0.2]), torch.tensor([False, False, True]))
    0.75
    """
    from torchmetrics.functional.classification import binary_auroc

    s, e = checked_scores(score, positives, "score", "positives")
    require_binary(e)
    if e.min() == e.max():
        return float("nan")
    # Ranks, because torchmetrics passes any score outside [0, 1] through a sigmoid, which merges large ones.
    rank = torch.unique(s, return_inverse=True)[1].double()
    return float(binary_auroc(rank / rank.max().clamp(min=1), e.long(), validate_args=False))


def risk_coverage(uncertainty: Tensor, error: Tensor) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return coverage k/N and risk (the mean error of the k most certain examples) for k = 1 … N.

    Examples of equal uncertainty are averaged over all their orders: each counts with the mean error of its tie.

    Args:
        uncertainty: shape (N,), any real scale, larger is less certain.
        error: shape (N,), bool or a loss per example; risk has its unit.

    Returns:
        coverage and risk, each of shape (N,), float64.

    >>> risk_coverage(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 0, 1]))[1]
    tensor([0.0000, 0.0000, 0.3333], dtype=torch.float64)
    """
    u, e = checked_scores(uncertainty, error, "uncertainty", "error")
    _, tie, count = torch.unique(u, return_inverse=True, return_counts=True)
    mean = torch.bincount(tie, e) / count
    k = torch.arange(1, len(u) + 1, dtype=torch.float64, device="cpu")
    return k / len(u), mean.repeat_interleave(count).cumsum(0) / k


def aurc(uncertainty: Tensor, error: Tensor) -> float:
    """Return the area under the risk–coverage curve, ``1/N sum_k risk(k/N)``; 0 is best, the error rate is chance.

    The estimator is the mean over the N coverages k/N of the mean error of the k most certain examples (no trapezoids);
    ties as in :func:`risk_coverage`.

    Source: Geifman, Uziel and El-Yaniv (2019), arXiv 1805.08206.

    >>> aurc(torch.tensor([0.2, 0.1]), torch.tensor([1, 0]))
    0.25
    """
    return float(risk_coverage(uncertainty, error)[1].mean())


def entropy(probs: Float[Tensor, "*N C"]) -> Float[Tensor, "*N"]:
    """Return ``-sum_c p_c log p_c`` in nats over the last dimension, shape (…), float64; 0 log 0 = 0.

    >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    p = float64(probs)
    total: Tensor = torch.special.entr(p).sum(-1)
    return total


def binary_entropy(probs: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """Return ``-p log p - (1-p) log(1-p)`` in nats of P(y=1), any shape; float64.

    >>> binary_entropy(torch.tensor([0.5, 1.0]))
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    p = float64(probs)
    total: Tensor = torch.special.entr(p) + torch.special.entr(1 - p)
    return total


def decompose(probs_samples: Tensor) -> Decomposition:
    """Split predictive uncertainty: ``H[mean_s p_s] = mean_s H[p_s] + mean_s KL(p_s || mean_s p_s)``, in nats.

    The epistemic part (mutual information of target and posterior draw) is computed as the mean KL divergence, not as a
    difference of near-equal entropies. Below 64 eps² of the given dtype (1e-12 nats for float32) it is rounding and
    set to 0, or a method without any would rank examples by noise.

    Args:
        probs_samples: posterior samples first: P(y=1), shape (S, N), or class probabilities, shape (S, N, …, C).

    Returns:
        total, aleatoric and epistemic, shape (N,) or (N, …), float64.

    Source: Depeweg et al. (2018), arXiv 1710.07283; Houlsby et al. (2011), arXiv 1112.5745.

    >>> [round(v.item(), 4) for v in decompose(torch.tensor([[1.0], [0.0]]))]
    [0.6931, 0.0, 0.6931]
    """
    require_samples(probs_samples)
    p = float64(probs_samples)
    require_probabilities(p)
    p = p.clamp(0, 1)
    p = torch.stack([1 - p, p], -1) if p.dim() == 2 else p
    mean = p[0] + (p - p[0]).mean(0)  # exact for equal samples
    kl = torch.special.xlogy(p, p / mean.clamp(min=torch.finfo(p.dtype).tiny)).sum(-1)
    floor = 64 * min(torch.finfo(probs_samples.dtype).eps, torch.finfo(torch.float32).eps) ** 2
    epistemic = kl.mean(0)
    return Decomposition(entropy(mean), entropy(p).mean(0), epistemic.where(epistemic > floor, 0.0))
