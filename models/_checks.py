"""What models of several encoders refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bayes_adapters.errors import ConfigError, whole_number
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Part

OF_ADAPTERS = {"rank": 8, "alpha": 16.0, "dropout": 0.0}
"""Options of low-rank adapters and their defaults in :class:`bayes_adapters.AdapterModel`."""


def check_lengths(lengths: object, blocks: object, every_layer: bool) -> None:
    """Raise :class:`ConfigError` unless ``lengths`` is a mapping, and blocks are named only where they are used."""
    if not isinstance(lengths, Mapping):
        raise ConfigError(
            f"lengths must map every encoder to the rows of its token factor, such as {{'text': 32}}; got {lengths!r}."
        )
    if blocks and not every_layer:
        raise ConfigError("blocks= has an effect only with every_layer=True; the last layer is known without.")


def check_fusion(
    widths: Mapping[str, int], lengths: Mapping[str, int], sizes: Mapping[str, int], width: int | None, every: bool
) -> None:
    """Raise :class:`ConfigError` unless a fusion's sizes fit its encoders.

    Args:
        widths: encoder → width of its hidden states.
        lengths: encoder → rows of its token factor.
        sizes: other sizes by name.
        width: what the encoders are projected to, or None.
        every: whether it fuses after every layer.
    """
    if set(lengths) != set(widths):
        raise ConfigError(f"lengths must name every encoder, {sorted(widths)}; got {sorted(lengths)}.")
    for what, value in ({**sizes} | {f"lengths[{n!r}]": v for n, v in lengths.items()}).items():
        whole_number(what, value)
    if width is None and len(set(widths.values())) > 1:
        raise ConfigError(f"The encoders' widths differ, {dict(widths)}: pass width= to project them to one.")
    if width is not None and every:
        raise ConfigError("Fusion after every layer adds to the encoders' own streams; it takes no width=.")


def check_used(only_default_streams: bool, adapters: Mapping[str, Any] | None, every_layer: bool) -> None:
    """Refuse options of parts that there are not; configurations of saved models name their defaults.

    Args:
        only_default_streams: whether every stream has the default pooling.
        adapters: the options of low-rank adapters where no layer has one; None where some have.
        every_layer: whether it fuses after every layer.

    Raises:
        ConfigError: an option has no effect.
    """
    if not every_layer and not only_default_streams:
        raise ConfigError(
            "streams= has no effect with every_layer=False: the head reads the mean of the r fused tokens. Leave "
            "it out, or take every_layer=True."
        )
    for option, given in (adapters or {}).items():
        if given != OF_ADAPTERS[option]:
            raise ConfigError(
                f"{option}={given} has no effect: it is for low-rank adapters, and without targets= no layer has one. "
                "The fusion's own rank is fusion_rank=."
            )


def check_depths(widths: Mapping[str, Sequence[int]], size: int) -> None:
    """Raise :class:`ConfigError` unless all blocks of all encoders are ``size`` wide, and equally many in each."""
    depths = sorted({len(own) for own in widths.values()})
    if len(depths) > 1:
        raise ConfigError(f"Fusion after every layer needs encoders of one depth; got {depths}.")
    for name, own in widths.items():
        if set(own) != {size}:
            raise ConfigError(
                f"Fusion after every layer needs blocks of one width, {size}; those of {name!r} have {list(own)}. Take "
                "every_layer=False, which fuses the last hidden states, or an encoder that does not widen."
            )


def check_gain(gain: object) -> None:
    """Raise :class:`ConfigError` unless λ starts at a finite number."""
    if not isinstance(gain, int | float) or not abs(gain) < float("inf"):
        raise ConfigError(f"gain is the first value of λ and must be a finite number, for example 0.5; got {gain!r}.")


def check_drop(drop: float) -> None:
    """Raise :class:`ConfigError` unless ``drop`` is a probability of which neither outcome is certain."""
    if not 0.0 < drop < 1.0:
        raise ConfigError(f"drop is the probability of masking an input and must lie in (0, 1); got {drop}.")


def check_masks(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` if a head has random weights, or what is kept would be divided by 0."""
    if any(site.part == Part.FACTOR for site in model.sites):
        raise ConfigError(
            f"The prior of an AdapterDropout is of masks, so the random weights of the {type(model.head).__name__} "
            "have none. Take a head without random weights."
        )
    for site in model.sites:
        if not bool((model.prior.of(site).mean > 0).all()):
            raise ConfigError(
                f"The prior of {site.name!r} keeps some inputs with probability 0, and what is kept is divided "
                "by it. Take a probability above 0, or leave the layer out of targets."
            )


def require_singular_values(path: str, rank: int, inputs: int) -> None:
    """Raise :class:`ConfigError` if A (rank, inputs) has fewer singular values than rows."""
    if rank > inputs:
        raise ConfigError(
            f"The layer {path!r} has {inputs} inputs, so A has no {rank} singular values. "
            f"Take rank={inputs} or less, or leave the layer out of targets."
        )
