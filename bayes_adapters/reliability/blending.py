"""A prediction that gives way to the marginal predictor as far as its context cannot be trusted."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis.marginal import Marginal
from bayes_adapters.devices import float64
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.reliability._checks import check_blend


def blend(
    prediction: Prediction, weight: Float[Tensor, " B"], marginal: Marginal, targets: Tensor | None = None
) -> Prediction:
    """Return ``p = γ p̄ + (1 − γ) p₀``: with probability 1 − γ the network is not to be believed, and p₀ is left.

    Widening a posterior moves an answer as far as the layers above let it, and a head may answer noise with one class.
    This is what it cannot give: at γ = 0 the answer is p₀ itself, and ``−log p(y) ≤ −log(1 − γ) − log p₀(y)`` always.
    Total is H[p], aleatoric ``γ · aleatoric + (1 − γ) H[p₀]``, and epistemic the rest, nats, which is not negative as H
    is concave: besides the draws' disagreement it holds the doubt which of the two is right. It is small at γ = 0,
    where there is no doubt any more; what rises up to there is total.

    Args:
        prediction: of classes, one per example.
        weight: γ, such as ``density(frames)``, shape (B,), 0 to 1.
        marginal: p₀, such as ``Marginal.of(training_targets)``.
        targets: those that the prediction was made with, shape (B,), for its ``log_density``; None leaves it out.

    Raises:
        ConfigError: the prediction is of numbers, labels, tokens or tasks, or ``marginal`` of other classes.
        DataError: ``weight`` is no (B,) of numbers from 0 to 1; ``targets`` of another shape, or the prediction was
            made without them.

    >>> entropies = torch.tensor([0.056, 0.056])
    >>> sure = Prediction(torch.tensor([0.99, 0.99]), entropies, entropies, 0 * entropies, num_samples=1)
    >>> blind = Marginal(torch.tensor([0.5, 0.5], dtype=torch.float64))
    >>> found = blend(sure, torch.tensor([1.0, 0.0]), blind)
    >>> found.probs, [round(float(t), 3) for t in found.total]
    (tensor([0.9900, 0.5000]), [0.056, 0.693])
    """
    shares = check_blend(prediction, weight, marginal, targets)
    binary = prediction.mean.dim() == 1
    gamma, p = float64(weight.to(prediction.mean.device)), float64(prediction.mean)
    p = torch.stack([1 - p, p], -1) if binary else p
    shares = shares.to(p)
    mixed = gamma[:, None] * p + (1 - gamma[:, None]) * shares
    total = torch.special.entr(mixed).sum(-1)
    aleatoric = gamma * float64(prediction.aleatoric) + (1 - gamma) * torch.special.entr(shares).sum()
    aleatoric = torch.minimum(aleatoric, total)  # float32 rounding of the given part
    density = None
    if targets is not None and prediction.log_density is not None:
        own = float64(prediction.log_density) + gamma.log()
        blind = -marginal.nll(targets).to(p) + (1 - gamma).log()
        density = torch.logaddexp(own, blind).float()
    return replace(
        prediction,
        mean=(mixed[:, 1] if binary else mixed).float(),
        total=total.float(),
        aleatoric=aleatoric.float(),
        epistemic=(total - aleatoric).float(),
        log_density=density,
        samples=None,
        local=None if prediction.local is None else (gamma * float64(prediction.local)).float(),
    )
