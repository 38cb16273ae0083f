"""How wide a posterior must fall back so that answers about foreign contexts are no worse than blind ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from bayes_adapters.analysis.marginal import Marginal
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ScaleWarning
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.reliability._checks import check_scales, require_far, require_known, require_reliability

_SCALES = tuple(0.25 * 2.0**k for k in range(12))
_HALVINGS = 4


class Widening(NamedTuple):
    """What :func:`calibrate_scale` has found.

    Args:
        scale: s, which the guide's reliability now has.
        nll: −log p̄(y) on the far contexts with it, nats per example.
        marginal: that of the marginal predictor.
        tried: scale → nll, of every scale that was tried, in rising order.
        reached: whether ``nll ≤ marginal + tolerance``.
    """

    scale: float
    nll: float
    marginal: float
    tried: dict[float, float]
    reached: bool


def calibrate_scale(
    model: AdapterModel,
    guide: Any,
    far: Batch | Sequence[Batch],
    training_targets: Tensor,
    *,
    modality: str | None = None,
    scales: Iterable[float] = _SCALES,
    tolerance: float = 0.02,
    num_samples: int = 64,
    seed: int = 0,
) -> Widening:
    """Give the guide's reliability the smallest scale s at which far contexts are answered no worse than blindly.

    Formula: ``min s : (1/n) Σ_i −log p̄_s(y_i | x_i, a_i) ≤ −(1/n) Σ_i log p₀(y_i) + tolerance``, p̄_s being the
    predictive whose posteriors fall back to ``N(·, s²)`` as far as γ(a_i) says, and p₀ the training targets' own
    distribution (:class:`~bayes_adapters.analysis.marginal.Marginal`). A core that is as wide as its prior moves a
    predictive little: a token is one of many, and B is small after little training. So s is a matter of the trained
    model, not of the prior. Where a logit is ``m + s κ ξ``, ξ ~ N(0, 1), the answer tends to ½ as s grows whatever m
    is: about ``sigmoid(m / √(1 + π s² κ² / 8))``.

    The scales are tried from the smallest; then the interval below the first one that serves is halved four times, on
    its logarithm. Draws are those of ``seed`` at every s. Contexts with γ = 1 are answered as before whatever s is.

    Args:
        model: trained.
        guide: its guide, with ``reliability=``; its reliability's scale is changed.
        far: labelled examples with contexts unlike those of training, such as corrupted or foreign recordings; of the
            validation set, not the test set.
        training_targets: of the training set, shape (N,), for p₀.
        modality: whose reliability it is, where the guide reads several contexts, each with its own; the others keep
            their scales. Let only this one be far.
        scales: what to try, at least two.
        tolerance: nats that the answer may be worse than the marginal predictor's.
        num_samples: draws of each prediction.
        seed: of the draws.

    Warns:
        ScaleWarning: no scale serves; the one with the lowest NLL is kept. Then the head's answer on noise is not the
            marginal one: train with such contexts, or let the answer give way, see
            :func:`bayes_adapters.reliability.blend`.

    Raises:
        ConfigError: the guide has no reliability, or several and no ``modality``, or ``scales`` or ``tolerance`` are
            out of range.
        DataError: no targets, several per example (tokens, labels, tasks), one that the training targets do not
            know, or every far context is trusted fully.
    """
    reliability, context = require_reliability(guide, modality)
    grid = check_scales(scales, tolerance)
    batches = [far] if isinstance(far, Batch) else list(far)
    targets = require_far(reliability, context, batches)
    known = Marginal.of(training_targets, getattr(model.likelihood, "num_outputs", None))
    require_known(targets, known.probs)
    marginal = float(known.nll(targets).mean())
    before, tried = reliability.scale, dict[float, float]()

    def serves(scale: float) -> bool:
        reliability.scale = scale
        tried[scale] = _nll(predict(model, guide, batches, num_samples=num_samples, seed=seed))
        return tried[scale] <= marginal + tolerance

    try:
        best = next((scale for scale in grid if serves(scale)), None)
        low = max((scale for scale in grid if best is not None and scale < best), default=None)
        if best is not None and low is not None:
            for _ in range(_HALVINGS):
                middle = math.sqrt(low * best)
                low, best = (low, middle) if serves(middle) else (middle, best)
    except BaseException:
        reliability.scale = before
        raise
    scale = min(tried, key=lambda s: tried[s]) if best is None else best
    reliability.scale = scale
    if best is None:
        warnings.warn(
            f"No scale of {grid} makes far contexts as good as the marginal predictor ({marginal:.3f} nats); the "
            f"best, {scale:g}, has {tried[scale]:.3f}. On noise the head does not answer with the classes' shares. "
            "Train with such contexts, or let answers give way: bayes_adapters.reliability.blend.",
            ScaleWarning,
            stacklevel=2,
        )
    return Widening(scale, tried[scale], marginal, dict(sorted(tried.items())), best is not None)


def _nll(prediction: Prediction) -> float:
    density = prediction.log_density
    return math.nan if density is None else -float(density.double().mean())
