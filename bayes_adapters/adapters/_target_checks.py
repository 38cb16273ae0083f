"""What a selection of layers refuses: names that match nothing, or something that cannot be adapted."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from bayes_adapters.adapters import _pattern
from bayes_adapters.errors import TargetError, near_matches


def matches(path: str, pattern: str | Sequence[str]) -> bool:
    """Whether a path ends in one of several suffixes, or is matched as a whole by one regular expression."""
    if isinstance(pattern, str):
        try:
            return _pattern.matches(pattern, path)
        except ValueError as error:
            raise TargetError(
                f"{pattern!r} is not a regular expression that can be used: {error}. For a suffix pass a list: "
                f"[{pattern!r}]."
            ) from error
    return any(path == suffix or path.endswith("." + suffix) for suffix in pattern)


def is_peft(module: nn.Module) -> bool:
    """Whether this is a layer that PEFT has put around a linear one."""
    return type(module).__module__.startswith("peft.tuners.") and hasattr(module, "base_layer")


def warn_of_stacked(backbone: nn.Module) -> None:
    """Name the weights of three axes: matrices of several experts (Mixtral), or heads (XLNet), in one tensor."""
    other = (_ConvNd, _ConvTransposeNd, ParametrizationList, nn.Embedding)  # three axes, but no stack of matrices
    stacked = {
        f"{path}.{name}".lstrip("."): parameter.numel()
        for path, module in backbone.named_modules()
        if not isinstance(module, other)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1
    }
    if not stacked:
        return
    share = sum(stacked.values()) / sum(parameter.numel() for parameter in backbone.parameters())
    kinds = sorted({re.sub(r"\.\d+\.", ".*.", path) for path in stacked})
    warnings.warn(
        f"'all-linear' leaves out {', '.join(kinds[:6])}{' …' if len(kinds) > 6 else ''}: {share:.0%} of the weights "
        f"of this {type(backbone).__name__}, which stacks matrices in tensors of three axes (its experts?) that are in "
        "no linear layer. They stay frozen and without adapters. To do without this warning list the layers: "
        "targets=[...].",
        stacklevel=3,
    )


def require_each_exclusion(exclude: str | Sequence[str], linear: list[str]) -> None:
    """Refuse an exclusion that matches nothing while some path has such a part; if none has, there is nothing to do."""
    parts = sorted({part for path in linear for part in path.split(".")})
    for name in [exclude] if isinstance(exclude, str) else exclude:
        near = near_matches(name, parts, cutoff=0.8)
        if near and not any(matches(path, name if isinstance(exclude, str) else [name]) for path in linear):
            raise TargetError(
                f"exclude={name!r} matches no linear layer.{near} A list holds the ends of layer paths, one string is "
                f"a regular expression of the whole path, such as '.*{name}.*'."
            )


def require_each_suffix(backbone: nn.Module, names: str | Sequence[str], linear: list[str], found: list[str]) -> None:
    """Raise :class:`TargetError` for the first name that matches no linear layer, and say what it does match."""
    suffixes = sorted({path.rsplit(".", 1)[-1] for path in linear})
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        is_suffix = any(matches(path, [name]) for path in linear)
        if found if isinstance(names, str) else is_suffix:
            continue
        if is_suffix:
            raise TargetError(
                f"{name!r} matches no linear layer of {type(backbone).__name__}: one string is a regular expression "
                f"that must match a whole path. For a suffix pass a list: [{name!r}]."
            )
        others = [path for path, _ in backbone.named_modules() if path == name or path.endswith("." + name)]
        if others:
            other = backbone.get_submodule(others[0])
            if is_peft(other):
                raise TargetError(
                    f"{others[0]!r} already holds an adapter of PEFT. Merge it first (peft_model.merge_and_unload()), "
                    "read its folder with bayes_adapters.files.peft.from_peft, or adapt other layers."
                )
            kind = type(other).__name__
            raise TargetError(
                f"{name!r} matches {others[0]!r}, a {kind}; only torch.nn.Linear and Conv1D can be adapted."
            )
        raise TargetError(
            f"No linear layer of {type(backbone).__name__} matches {name!r}.{near_matches(name, suffixes)} "
            f"Its linear layers end in: {', '.join(suffixes)}. Pass some of these as targets=[...], or "
            "targets='all-linear'."
        )


def require_named(names: str | Sequence[str]) -> None:
    """Raise :class:`TargetError` for targets that name nothing."""
    if not names:
        raise TargetError(
            "The targets are empty; name layers, for example targets=['query', 'value'], or 'all-linear'."
        )


def require_linear(backbone: nn.Module, linear: Sequence[str]) -> None:
    """Raise :class:`TargetError` unless there are linear layers in ``backbone``."""
    if not linear:
        raise TargetError(
            f"{type(backbone).__name__} has no torch.nn.Linear or transformers Conv1D layer to adapt. Is it a "
            "backbone, or a wrapper around one? Pass the transformer, for example AutoModel.from_pretrained(...)."
        )


def require_numbers(layers: object) -> None:
    """Raise :class:`TargetError` unless ``layers`` is a list of numbers."""
    if not isinstance(layers, Sequence) or not all(type(number) is int for number in layers):
        raise TargetError(f"layers must be a list of block numbers, such as [0, 1], or None; got {layers!r}.")


def require_blocks(layers: Sequence[int], index: Mapping[str, int]) -> None:
    """Raise :class:`TargetError` if a block of ``layers`` holds none of the paths, which ``index`` maps to blocks."""
    missing = sorted(set(layers) - set(index.values()))
    if missing:
        raise TargetError(f"No matched layer lies in block {missing}; matched blocks: {sorted(set(index.values()))}.")


def require_left(found: Sequence[str], names: str | Sequence[str], exclude: str | Sequence[str]) -> None:
    """Raise :class:`TargetError` if exclusion leaves no layer."""
    if not found:
        raise TargetError(f"Everything that {names!r} matches is excluded by {exclude!r}: no layer is left to adapt.")
