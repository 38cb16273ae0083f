"""What training-free Bayesianization refuses."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from bayes_adapters.adapters._lora_checks import require_lora
from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError, positive_number, whole_number
from bayes_adapters.files.marks import has_fresh_head
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Bernoulli, Categorical, Likelihood
from bayes_adapters.models import LoRA, StochasticDown
from bayes_adapters.surgery._noise_search import Criterion, Labels, Relative


def read_anchors(anchors: Batch | Iterable[Batch], labels: Labels, likelihood: Likelihood) -> list[Batch]:
    """Return the batches of anchors, with targets only where they are wanted.

    Raises:
        DataError: there are none, one is no batch, or it lacks targets that are wanted, or the likelihood refuses them.
    """
    batches = [anchors] if isinstance(anchors, Batch) else list(anchors)
    if not batches:
        raise DataError("There are no anchors: the data holds no batch. Was a generator already exhausted?")
    for batch in batches:
        if not isinstance(batch, Batch):
            raise DataError(f"The anchors must be a Batch or an iterable of them; got a {type(batch).__name__}.")
        if labels is Labels.MODEL:
            continue
        if batch.targets is None:
            raise DataError("labels='targets' needs targets in every batch of anchors; labels='model' needs none.")
        likelihood.accept(batch.targets)
    return batches if labels is Labels.TARGETS else [batch.without_targets() for batch in batches]


def check_criterion(criterion: Criterion, relative: Relative, labels: Labels, tolerance: float | None) -> None:
    """Raise :class:`ConfigError` for options that do not go together."""
    if criterion is Criterion.LEAST_NLL and (labels is Labels.MODEL or tolerance is not None):
        raise ConfigError(
            "criterion='least_nll' takes the noise that makes the loss of held-out targets least: it needs "
            f"labels='targets' and no tolerance; got labels={labels.value!r} and tolerance={tolerance}. Noise never "
            "makes a model's own labels more probable."
        )
    if criterion is not Criterion.NLL and relative is not Relative.LOSS:
        raise ConfigError(
            f"relative_to={relative.value!r} is a unit of nats, for criterion='nll'; got criterion={criterion.value!r}."
        )


def label_entropy(probabilities: Tensor, count: int) -> float:
    """Return the entropy of the mean over anchors, nats; raise :class:`ConfigError` where it is 0.

    Args:
        probabilities: of classes, shape (N, C), or of the second of two, (N,); one-hot where labels are known.
        count: N.
    """
    mean = probabilities.mean(0)
    shares = torch.stack([1.0 - mean, mean]) if mean.dim() == 0 else mean
    entropy = float(torch.special.entr(shares).sum())
    if not entropy > 1e-9:
        raise ConfigError(
            f"All {count} anchors have one label, so the entropy of the labels, which relative_to='marginal' (the "
            "default) is measured in, is 0. Take anchors of several classes, or relative_to='nats'."
        )
    return entropy


def check_search(
    model: AdapterModel, guide: AdapterGuide, tolerance: float, low: float, high: float, iterations: int, widen: int
) -> None:
    """Raise :class:`ConfigError` unless noise on A can be sought for this model, with these options."""
    if type(model) not in (LoRA, StochasticDown) or model.random_head:
        raise ConfigError(
            f"bayesianise() takes a LoRA or a StochasticDown, not a {type(model).__name__} whose sites are "
            f"{[site.name for site in model.latent_sites]}: in its result nothing but A is random."
        )
    require_pair(model, guide)
    for layer in adapted_layers(model.backbone).values():
        require_lora(layer)
    if not isinstance(model.likelihood, Bernoulli | Categorical):
        raise ConfigError(
            f"The search compares losses of classes; the likelihood is {type(model.likelihood).__name__}. Take "
            "Bernoulli or Categorical. For a regression choose σ_q by other means: TrainingFree(model, scale=…)."
        )
    ups = [layer.lora_B for layer in adapted_layers(model.backbone).values() if layer.lora_B is not None]
    if not any(bool(up.any()) for up in ups):
        raise ConfigError(
            "B is 0 in every layer, so noise on A has no effect and every σ_q is the same. Train the adapter first, or "
            "was it loaded without its weights?"
        )
    if has_fresh_head(model):
        raise ConfigError(
            "The model's head was never trained: its adapters come from PEFT and their head did not come along, so the "
            "search would measure noise against answers at random. Train the head first (fit), or put a trained one "
            "into model.head."
        )
    if not 0.0 < low < high < math.inf:
        raise ConfigError(f"low and high are standard deviations, 0 < low < high; got {low} and {high}.")
    positive_number("tolerance", tolerance)
    whole_number("iterations", iterations, least=0)
    whole_number("widen", widen, least=0)
