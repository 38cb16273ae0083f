"""What finding the blocks of an encoder, and pairing those of two, refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.errors import ConfigError, near_matches

BY_HAND = "Name the parts yourself: Blocks.from_templates(module, Block(path='layers.{i}', ...))."


def require_numbered(templates: Mapping[str, str]) -> None:
    """Raise :class:`ConfigError` unless every template has a place for the block's number."""
    for name, template in templates.items():
        if "{i}" not in template:
            raise ConfigError(f"The template {name}={template!r} has no {{i}}, which stands for the block's number.")


def require_modules(
    module: nn.Module, paths: Mapping[str, str], templates: Mapping[str, str], known: Mapping[str, nn.Module]
) -> None:
    """Raise :class:`ConfigError` unless every path that a template gave is a module of ``module``.

    Args:
        module: the encoder.
        paths: role → path.
        templates: role → the template that gave the path.
        known: path → module of the encoder.
    """
    for name, path in paths.items():
        if path not in known:
            raise ConfigError(
                f"{type(module).__name__} has no module {path!r} for the template {name}={templates[name]!r}."
                f"{near_matches(path, known)}"
            )


def require_one_kind(path: str, layers: Iterable[nn.Module]) -> None:
    """Raise :class:`ConfigError` unless the blocks of the list at ``path`` are of one class."""
    if len(kinds := {type(layer).__name__ for layer in layers}) > 1:
        raise ConfigError(f"The blocks in {path!r} are of different kinds, {sorted(kinds)}. {BY_HAND}")


def require_encoder_names(given: Iterable[str], encoders: nn.ModuleDict) -> None:
    """Raise :class:`ConfigError` where a name is that of no encoder."""
    unknown = [name for name in given if name not in encoders]
    if unknown:
        raise ConfigError(f"blocks names {unknown[0]!r}; the encoders are {sorted(encoders)}.")


def require_some(counts: Mapping[str, int]) -> None:
    """Raise :class:`ConfigError` where an encoder was given no block."""
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise ConfigError(f"blocks gives no block for {empty[0]!r}. Leave it out, and they are found by structure.")


def no_blocks(name: str, given: object, fields: Iterable[str]) -> ConfigError:
    """Return the error for blocks of the encoder ``name`` that are neither ``Blocks`` nor their JSON."""
    return ConfigError(
        f"blocks[{name!r}] must be Blocks, or a list with a dictionary a block, of "
        f"{', '.join(fields)}; got {str(given)[:200]}."
    )


def require_parts(name: str, blocks: Iterable[Mapping[str, Any]], encoder: nn.Module) -> None:
    """Raise :class:`ConfigError` unless every path of every block, role → path, is a module of its encoder."""
    known = dict(encoder.named_modules())
    for number, block in enumerate(blocks):
        for role, path in block.items():
            if path not in known:
                raise ConfigError(
                    f"blocks[{name!r}][{number}] has {role}={path!r}, which is no module of this "
                    f"{type(encoder).__name__}.{near_matches(str(path), known)}"
                )


def no_list(module: nn.Module, found: Iterable[str], names: Iterable[str]) -> ConfigError:
    """Return the error for an encoder with no list of blocks, or with several that are no stages.

    Args:
        module: the encoder.
        found: paths of its lists of blocks.
        names: the names of query, key and value layers that are looked for.
    """
    if several := sorted(found):
        return ConfigError(
            f"{type(module).__name__} has several lists of blocks, {several}, and they are no stages, each "
            f"of which makes the next one's width: pass one encoder, for example model.get_encoder(). {BY_HAND}"
        )
    linear = sorted({p.rsplit(".", 1)[-1] for p, m in module.named_modules() if dimensions(m) is not None})
    return ConfigError(
        f"{type(module).__name__} has no list of blocks that each hold one query, one key and one value layer (allowed "
        f"names: {', '.join(names)}).{near_matches('query', linear)} Its linear layers end in: "
        f"{', '.join(linear) or 'none'}. Cross-attention and fused query-key-value layers are not covered. {BY_HAND}"
    )


def require_calls(path: str, block: nn.Module, silent: Sequence[str]) -> None:
    """Raise :class:`ConfigError` where a block does not call some of its layers, the ``silent`` ones."""
    if silent:
        raise ConfigError(
            f"{type(block).__name__} at {path!r} does not call its layers {silent}: its attention reads their weights "
            "itself, so neither adapters nor taps can be put there. Choose another encoder, or build Blocks with other "
            "layers in their place."
        )


def require_three(path: str, block: nn.Module, rest: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless a block calls three linear layers besides query, key and value."""
    if len(rest) != 3:
        raise ConfigError(
            f"{type(block).__name__} at {path!r} calls {len(rest)} linear layers besides query, key and value, {rest}; "
            f"output projection, fc1 and fc2 are three. {BY_HAND}"
        )


def no_residual(path: str, block: nn.Module) -> ConfigError:
    """Return the error for a block that is neither post-norm nor pre-norm."""
    return ConfigError(
        f"{type(block).__name__} at {path!r} is neither post-norm (query sees the block's input) nor pre-norm "
        f"(query and fc1 each see the result of a norm), so there is no telling where the residual stream is. "
        f"{BY_HAND}"
    )


def no_trial(path: str, block: nn.Module, shape: tuple[int, ...], error: Exception) -> ConfigError:
    """Return the error for a block that cannot be run alone on a tensor of ``shape``."""
    return ConfigError(
        f"{type(block).__name__} at {path!r} cannot be run alone on a tensor of shape {shape}: {error}. {BY_HAND}"
    )


def require_depths(n: int, m: int) -> None:
    """Raise :class:`ConfigError` unless both depths are at least 1."""
    if n < 1 or m < 1:
        raise ConfigError(f"Encoders have at least one block; got depths {n} and {m}.")


def require_same_depth(n: int, m: int) -> None:
    """Raise :class:`ConfigError` unless the depths are equal."""
    if n != m:
        raise ConfigError(
            f"depths='same' needs encoders of one depth; got {n} and {m} blocks. Pass "
            f"depths={'every-k' if max(n, m) % min(n, m) == 0 else 'spread'!r}."
        )


def require_multiple(n: int, m: int) -> None:
    """Raise :class:`ConfigError` unless one depth is a multiple of the other."""
    if max(n, m) % min(n, m):
        raise ConfigError(
            f"depths='every-k' needs one depth to be a multiple of the other; got {n} and {m} blocks. Pass "
            "depths='spread'."
        )
