"""What a Laplace approximation refuses, and what it warns of."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError, described, positive_number
from bayes_adapters.files.marks import has_fresh_head
from bayes_adapters.inference._checks import non_finite
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Site

_UNTRAINED = 1.0
"""Posterior standard deviations, along each direction that the data determine, that a point may be off its optimum."""


def require_curved_density(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` where an example has no curvature: its density depends on other rows, or has kinks."""
    if not model.likelihood.smooth:
        raise ConfigError(
            f"A Laplace approximation takes the second derivative of log p(y | x), and that of "
            f"{type(model.likelihood).__name__} has kinks, where an error changes its sign: what is left beside them "
            "is no information. Take SWAG, an ensemble, langevin or a guide such as MeanField."
        )
    if model.likelihood.compares:
        raise ConfigError(
            f"A Laplace approximation adds the curvatures of single examples, and {type(model.likelihood).__name__} "
            "compares the rows of a batch: one row alone says nothing. Take SWAG, an ensemble, langevin or a guide "
            "such as MeanField, which see whole batches."
        )


def require_targets(data: Any) -> Iterator[Batch]:
    """Yield the batches of ``data``; raise :class:`DataError` where there is none, or one without targets."""
    if not isinstance(data, Batch | Iterable):
        raise DataError(
            f"The data must be a Batch or an iterable of them, such as a DataLoader; got {described(data)}."
        )
    seen = 0
    for batch in [data] if isinstance(data, Batch) else data:
        if not isinstance(batch, Batch):
            raise DataError(f"The data must hold batches; they hold {described(batch)}.")
        if batch.targets is None:
            raise DataError("The curvature is that of the targets' likelihood, and a batch has no targets.")
        seen += 1
        yield batch
    if not seen:
        raise DataError("There is no curvature: the data holds no batch. Was a generator already exhausted?")


def require_finite_curvature(model: AdapterModel, rows: Tensor, number: int, what: str = "gradient") -> None:
    """Raise :class:`NonFiniteError`, naming the tensor at fault, where what example ``number`` has is not finite."""
    if not bool(rows.isfinite().all()):
        raise non_finite(
            f"The {what} of example {number} under this {type(model).__name__}: there is NaN or infinity, and the "
            "precision would not be positive definite",
            model,
        )


def require_curved(model: AdapterModel, trace: float, count: int) -> None:
    """Raise :class:`ConfigError` where no weight has any curvature."""
    if trace == 0.0:
        raise ConfigError(
            f"No weight changes −log p(y | x) of any of {count} examples to second order: the curvature is exactly 0. "
            "Is B still 0 in every layer, so that the adapter was never trained, are all answers certain to the last "
            f"digit, or is the density of {type(model.likelihood).__name__} linear in the outputs?"
        )


def require_trained(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` where B is 0 in every layer, as before training: A then has no curvature at all."""
    layers = adapted_layers(model.backbone).values()
    factors = [layer.lora_B for layer in layers if layer.rank > 0 and layer.lora_B is not None]
    if factors and not any(bool(factor.any()) for factor in factors):
        raise ConfigError(
            f"B is 0 in all {len(factors)} adapted layers: this {type(model).__name__} was never trained, and this "
            "is a Gaussian around a trained point. Train it first, with fit(model, guide, data), or load "
            "an adapter; last_layer_laplace serves a trained head without adapters."
        )


def require_structure(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` where a Gaussian cannot stand for the model's random parts or its head."""
    if has_fresh_head(model):
        raise ConfigError(
            "The model's head was never trained: its adapters come from PEFT and their head did not come along, so the "
            "curvature would be that of answers at random. Train the head first (fit), or put a trained one into "
            "model.head."
        )
    if model.head_sites:
        raise ConfigError(
            f"The {type(model.head).__name__} brings a posterior of its own, which a Laplace approximation would "
            "replace. Train the adapters with a plain head, such as LinearHead, and call it then."
        )


def require_global_weights(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` where a draw is not one for the whole data set."""
    for site in model.sites:
        if site.granularity is not Granularity.GLOBAL:
            raise ConfigError(
                f"{site.name!r} has a draw for each {site.granularity.value}, so there is no weight to put a Gaussian "
                "around. Build the model with granularity='global', or take last_layer_laplace, which stands beside "
                "any adapters and guide."
            )


def require_watched(sites: Sequence[Site], seen: Collection[str]) -> None:
    """Raise :class:`ConfigError` where a matrix was multiplied by no vectors, so that it has no Kronecker factors."""
    for site in sites:
        if len(site.event) > 2 or (len(site.event) == 2 and site.name not in seen):
            raise ConfigError(
                f"{site.name!r}, of shape {tuple(site.event)}, is multiplied with no vectors in this model, so its "
                "curvature has no Kronecker form. Take structure='block' or 'low_rank'."
            )


def require_one_unit(name: str, unit: Tensor) -> None:
    """Raise :class:`ConfigError` where the prior of a matrix has more than one standard deviation."""
    if unit.numel() and not bool((unit == unit[0]).all()):
        raise ConfigError(
            f"The prior of {name!r} has standard deviations from {float(unit.min()):.3g} to {float(unit.max()):.3g} "
            "within one matrix, and added to a Kronecker product they have no closed form. Take structure='block', or "
            "a prior with one standard deviation per matrix."
        )


def require_tokens(structure: str, tokens: str | None) -> None:
    """Raise :class:`ConfigError` where ``tokens`` is given to a structure that it has no effect in."""
    if tokens is not None and structure != "kronecker":
        raise ConfigError(
            f"tokens={str(tokens)!r} says how Kronecker factors sum over tokens, and structure={str(structure)!r} sums "
            "exactly. Leave it out, or take structure='kronecker'."
        )


def require_no_kronecker(structure: str) -> None:
    """Raise :class:`ConfigError` for the structure that a last layer has no guide for."""
    if structure == "kronecker":
        raise ConfigError(
            "structure='kronecker' is for adapters, surgery.laplace; of the last layer take 'block', which is exact "
            "within each output, or 'low_rank'."
        )


def require_memory(size: int, needed: dict[str, float], structure: str, allowed: float) -> None:
    """Raise :class:`ConfigError` where ``structure`` needs more gigabytes than ``allowed``.

    Args:
        size: D.
        needed: structure → gigabytes.
        structure: the one asked for.
        allowed: gigabytes.
    """
    positive_number("max_gigabytes", allowed)
    if needed[structure] <= allowed:
        return
    fits = [f"structure={name!r} ({need:.2g} GB)" for name, need in needed.items() if need <= allowed]
    others = f"Take {' or '.join(fits)}" if fits else "Take a smaller rank="
    raise ConfigError(
        f"structure={structure!r} over D = {size} weights needs {needed[structure]:.2g} GB, and max_gigabytes is "
        f"{allowed:g}. {others}, fewer weights (weights='core' has r² per layer, last_layer_laplace those of the head "
        "only), or pass a larger max_gigabytes."
    )


def require_validation(prior_precision: object, validation: object) -> None:
    """Raise :class:`ConfigError` unless validation data are given where, and only where, they are used."""
    if (prior_precision == "validation") != (validation is not None):
        raise ConfigError(
            "validation= are the held-out batches that prior_precision='validation' is chosen on: pass both or "
            f"neither; got prior_precision={prior_precision!r} and validation={described(validation)}."
        )


def warn_untrained(shift: float, stacklevel: int) -> None:
    """Warn where the gradient says that the optimum is far from the point, in posterior standard deviations."""
    if shift > _UNTRAINED:
        warnings.warn(
            f"The adapter is not at an optimum: by its gradient and curvature that lies {shift:.3g} posterior standard "
            "deviations away along each direction that the data determine (root mean square; near 0 at an optimum), so "
            "a Gaussian around the point is not the posterior's. Train it longer first, on these data and without "
            "early stopping. Or are these other data?",
            stacklevel=stacklevel + 1,
        )


def warn_unbounded(searched: Sequence[float], best: float, stacklevel: int) -> None:
    """Warn where the best prior precision lies at an end of what was searched."""
    ends = {searched[0]: "smallest", searched[-1]: "largest"}
    if best in ends:
        warnings.warn(
            f"The best prior precision is the {ends[best]} of those searched, {best:g}: the data do not bound it. Pass "
            "a number, or choose it by the other means.",
            stacklevel=stacklevel + 1,
        )
