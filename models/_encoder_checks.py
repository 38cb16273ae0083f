"""What models refuse whose encoders are pooled, paired or run in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bayes_adapters.adapters.forward_pass import ForwardPass, current_pass
from bayes_adapters.backbones.windows import window_side
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.heads import Head, Pooling
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.modalities.blocks import Blocks
from bayes_adapters.sites import Site


def require_shared_rank(share: str, cross_rank: int, rank: int) -> None:
    """Raise :class:`ConfigError` if two paths share a matrix and differ in their ranks."""
    if share != "none" and cross_rank != rank:
        raise ConfigError(f"share={share!r} needs cross_rank = rank; got {cross_rank} and {rank}.")


def require_whole_examples(backbone: nn.Module, blocks: Mapping[str, Blocks], streams: Mapping[str, str]) -> None:
    """Raise :class:`ConfigError` if the first token is to stand for an example of an encoder that has windows.

    Args:
        backbone: the encoders by name.
        blocks: encoder → its blocks, each with a ``path``.
        streams: encoder → the name of its pooling.
    """
    for name, own in blocks.items():
        windowed = any(window_side(backbone.get_submodule(f"{name}.{b.path}")) is not None for b in own)
        if windowed and streams[name] == "cls":
            raise ConfigError(
                f"{name!r} attends within windows and has no token that stands for the whole example; cls pooling "
                f"would take the first patch. Take streams={{{name!r}: 'mean', ...}}."
            )


def require_sites(sites: Sequence[Site], blocks: Mapping[str, Blocks]) -> None:
    """Raise :class:`ConfigError` if no adapted layer is in a paired block."""
    if not sites:
        raise ConfigError(
            "targets= leaves no linear layer of a paired block adapted, so no encoder would see another. The "
            f"first of these layers is {next(iter(blocks.values()))[0].query!r}; leave targets out for all."
        )


def require_layer_rank(share: str, cross_rank: int, path: str, rank: int) -> None:
    """Raise :class:`ConfigError` if the layer at ``path`` shares a matrix and has lost ranks."""
    if share != "none" and rank != cross_rank:
        raise ConfigError(
            f"share={share!r} needs the cross rank {cross_rank} in every layer, and {path!r} "
            f"has {rank} ranks left. Leave ranks= out, or take share='none'."
        )


def running_pass(what: str) -> ForwardPass:
    """Return the pass that runs; raise :class:`ConfigError` if none does. ``what`` begins the sentence."""
    forward_pass = current_pass()
    if forward_pass is None:
        raise ConfigError(f"{what} inside the model only; call the model, the guide or predict().")
    return forward_pass


def require_no_padding(name: str, seen: int, tokens: int) -> None:
    """Raise :class:`DataError` if attention sees more tokens of an example than its block's input has."""
    if seen != tokens:
        raise DataError(
            f"The attention of {name!r} sees {seen} tokens of an example where its block's input has "
            f"{tokens}: the encoder pads images up to whole windows, and padding must not count. Resize the images "
            "so that at every stage the windows divide the grid of patches, or take schedule='module', which does "
            "not read within attention."
        )


def require_order(name: str, windows: int, *, first: bool, masked: bool) -> None:
    """Raise :class:`ConfigError` if pooling depends on the order of tokens, and windows have changed it.

    Args:
        name: the encoder.
        windows: the number of windows of an example.
        first: whether the pooling takes the first token.
        masked: whether the encoder's tokens have a mask.
    """
    if windows > 1 and (first or masked):
        what = "cls pooling takes the first token" if first else "a mask follows the order"
        raise ConfigError(
            f"The attention of {name!r} sees its tokens in {windows} windows per example, in another order than its "
            f"input's, and {what}. Take streams={{{name!r}: 'mean'}} and no mask for this encoder."
        )


def check_streams_head(model: AdapterModel, head: Head, head_width: int | None) -> None:
    """Raise :class:`ConfigError` unless ``head`` reads pooled outputs of several encoders, and its options count."""
    # the defaults, which configurations of saved models name
    if head.pooling is not (Pooling.NONE if model.tags else Pooling.MEAN):
        raise ConfigError(
            f"pooling={head.pooling.value!r} has no effect in a {type(model).__name__}: every encoder's output is "
            "pooled as streams= says, for example streams='cls'."
        )
    if type(head).read is not Head.read:
        raise ConfigError(
            f"{type(head).__name__} reads one backbone's output, and a {type(model).__name__} has several: its head "
            "sees their pooled outputs. Take a head that defines forward() only."
        )
    if not model.own_head and head_width is not None:
        raise ConfigError(f"head_width={head_width} has no effect where head= is given.")


def require_every_stream(streams: Mapping[str, Any], encoders: nn.ModuleDict) -> None:
    """Raise :class:`ConfigError` unless ``streams`` names the encoders, all of them and no others."""
    if set(streams) != set(encoders):
        raise ConfigError(
            f"streams must name every encoder, {sorted(encoders)}, or be one pooling; got {sorted(streams)}."
        )
