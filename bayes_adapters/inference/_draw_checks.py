"""What prediction refuses: data that is no batch, a guide that gives no draws, and draws that do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, DataError, described, near_matches
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.sites import Granularity, Site, SiteCall


def unsampled(name: str, draws: Mapping[str, Tensor]) -> ConfigError:
    """A site of the model that its guide does not sample."""
    return ConfigError(
        f"The guide samples no {name!r}, which would be drawn from its prior, not from a posterior."
        f"{near_matches(name, draws)} Its sites: {', '.join(list(draws)[:6]) or 'none'}."
    )


def require_shape(name: str, given: Tensor, value: Tensor, shape: torch.Size) -> None:
    """Raise :class:`ConfigError` unless draws have the shape that the model needs.

    Args:
        name: the site.
        given: its draws.
        value: the same with the data plate's dimension.
        shape: what the model needs.
    """
    if value.shape != shape:
        raise ConfigError(
            f"Draws of {name!r} have shape {tuple(given.shape)}; the model needs {tuple(shape)}, "
            "samples first. Draws of a site of one example or token each fit the batch they were made for only."
        )


def require_plates(name: str, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Raise :class:`ConfigError` unless draws of the site ``name`` are (samples, examples) first."""
    if found != expected:
        raise ConfigError(
            f"Draws of {name!r} have batch shape {found}; expected samples × examples = "
            f"{expected}. Run the guide inside pyro.plate(name, S, dim=-2)."
        )


def require_global(sites: Sequence[Site]) -> None:
    """Raise :class:`ConfigError` unless every one of ``sites`` has one draw for the whole data set."""
    for site in sites:
        if site.granularity is not Granularity.GLOBAL:
            raise ConfigError(
                f"{site.name!r} has a draw for each {site.granularity.value}, so no single draw of weights stands for "
                "the adapter: only a global posterior is drawn without a batch."
            )


def require_drawn(head: object, call: SiteCall) -> None:
    """Raise :class:`ConfigError` if prediction integrates a site of the ``head`` out, so that it has no draw."""
    if call.moments is not None:
        raise ConfigError(
            f"{call.site.name!r} of the {type(head).__name__} is integrated out: prediction draws outputs, no "
            "weights. Take the head BayesianLinear, whose draws are weights."
        )


def require_points(guide: object, sites: Sequence[Site], nodes: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` if a guide that calls itself deterministic has drawn one of ``sites``."""
    for site in sites:
        if site.name in nodes and not isinstance(base_distribution(nodes[site.name]["fn"]), Delta):
            raise ConfigError(
                f"{type(guide).__name__}.deterministic is true, and its posterior of {site.name!r} is a "
                f"{type(base_distribution(nodes[site.name]['fn'])).__name__}, whose draws differ. Override "
                "`deterministic` to return False."
            )


def require_median(guide: object) -> AutoGuide:
    """Return ``guide``; raise :class:`ConfigError` unless it is an autoguide, which may tell its median."""
    if not isinstance(guide, AutoGuide):
        raise ConfigError(
            f"mean_only needs the mean of the posterior, which a {type(guide).__name__} does not tell. "
            "Predict from draws, or take a guide of this library or an autoguide with a median."
        )
    return guide


def require_no_temperature(guide: object, temperature: float) -> None:
    """Raise :class:`ConfigError` if draws of a callable are to be scaled about their mean, which nobody knows."""
    if temperature != 1.0 and not isinstance(guide, Mapping):
        raise ConfigError(
            f"temperature={temperature:g} scales draws about the mean of the posterior, which a "
            f"{type(guide).__name__} does not tell. Take a guide of this library, or a dictionary of draws."
        )


def check_draws(draws: Mapping[Any, Any]) -> int:
    """Return S, the number of draws in a dictionary site → (S, …).

    Raises:
        ConfigError: a value is no tensor, or they differ in S.
    """
    sizes = {
        str(name): value.shape[0] if isinstance(value, Tensor) and value.dim() else 0 for name, value in draws.items()
    }
    if not sizes or len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ConfigError(
            f"Draws are a dictionary site → tensor (S, …), with one S for all sites; got {sizes or 'none'}. From "
            "pyro.infer.MCMC that is mcmc.get_samples(), without group_by_chain."
        )
    return next(iter(sizes.values()))


def require_ready(guide: object) -> None:
    """Raise :class:`ConfigError` if ``guide`` cannot give draws: no callable, or an autoguide that has seen no data."""
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise ConfigError(
            f"This {type(guide).__name__} has not been set up: it has no parameters before its first call. Train it "
            "with pyro.infer.SVI, or call guide(batch) once with a batch that has targets."
        )
    if isinstance(guide, type) or not callable(guide):
        raise ConfigError(
            "predict takes a guide: one of bayes_adapters.guides, any callable Pyro guide, or a dictionary site → "
            f"draws (S, …); got a {type(guide).__name__}."
        )


def require_wrapped(data: object) -> None:
    """Raise :class:`DataError` for what a tokenizer returns, as it is."""
    if isinstance(data, Mapping):
        raise DataError(
            f"predict() takes a Batch or an iterable of them; got {described(data)}. Wrap what a tokenizer returns: "
            "Batch(tokens)."
        )


def require_predictable(batch: object) -> None:
    """Raise :class:`DataError` unless it is a batch."""
    if not isinstance(batch, Batch):
        raise DataError(f"predict() takes a Batch or an iterable of them; it found a {type(batch).__name__}.")


def require_some(parts: Sequence[object]) -> None:
    """Raise :class:`DataError` if there was no batch at all."""
    if not parts:
        raise DataError("There is nothing to predict: the data holds no batch. Was a generator already exhausted?")


def require_enough(wanted: int, count: int) -> None:
    """Raise :class:`ConfigError` if more draws are wanted than there are."""
    if wanted > count:
        raise ConfigError(f"num_samples={wanted} are more than the {count} draws given. Leave it out to take all.")


def require_few_outputs(likelihood: object) -> None:
    """Raise :class:`ConfigError` where a tangent would have a row for every word of a vocabulary at every token."""
    if isinstance(likelihood, NextToken):
        raise ConfigError(
            "The tangent of a language model's logits has a row for each token and word, and is not computed for "
            "NextToken. Leave linearised out, take draws, or answer by AnswerTokens, whose tangent has K rows."
        )
