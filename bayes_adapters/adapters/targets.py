"""Which linear layers of a backbone get an adapter."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from bayes_adapters.errors import ConfigError, TargetError, near_matches

ALL_LINEAR = "all-linear"

_LAYER_INDEX = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Targets:
    """A selection of linear layers, resolved against a backbone by :func:`select`.

    Args:
        names: name suffixes (``["query", "value"]`` matches ``encoder.layer.0.attention.self.query``), or one string:
            ``"all-linear"``, or a regular expression that must match the whole module path.
        exclude: name suffixes, or one regular expression, of layers to leave out.
        layers: block indices to keep, counted as in the module path (the first number in it); None keeps all.

    >>> Targets(["query", "value"], layers=[10, 11])
    Targets(names=['query', 'value'], exclude=(), layers=[10, 11])
    """

    names: str | Sequence[str]
    exclude: str | Sequence[str] = ()
    layers: Sequence[int] | None = None


def as_targets(targets: Targets | str | Sequence[str]) -> Targets:
    """Turn the short forms (a string or a list of suffixes) into :class:`Targets`."""
    return targets if isinstance(targets, Targets) else Targets(targets)


def dimensions(module: nn.Module) -> tuple[int, int] | None:
    """Return (in_features, out_features) of a layer that can be adapted, or None for any other module.

    The routers of Llama 4 and Phi-MoE are linear by their class only: they return choices, and are none.
    """
    own_forward = type(module).forward is not nn.Linear.forward
    if isinstance(module, nn.Linear) and own_forward and "Router" in type(module).__name__:
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return None


def linear_size(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a layer that can be adapted.

    Raises:
        ConfigError: it is no such layer.
    """
    size = dimensions(module)
    if size is None:
        raise ConfigError(f"Cannot adapt a {type(module).__name__}; allowed: torch.nn.Linear, transformers Conv1D.")
    return size


def _matches(path: str, pattern: str | Sequence[str]) -> bool:
    if isinstance(pattern, str):
        try:
            return re.fullmatch(pattern, path) is not None
        except re.error as error:
            raise TargetError(
                f"{pattern!r} is not a regular expression: {error}. For a suffix pass a list: [{pattern!r}]."
            ) from error
    return any(path == suffix or path.endswith("." + suffix) for suffix in pattern)


def select(backbone: nn.Module, targets: Targets | str | Sequence[str]) -> list[str]:
    """List the paths of the layers that ``targets`` would adapt: the dry run of installing adapters.

    Args:
        backbone: any module; nothing in it is changed.
        targets: see :class:`Targets`; a list of suffixes or a string are short for ``Targets(...)``.

    Returns:
        Module paths in the order of ``backbone.named_modules()``.

    Raises:
        TargetError: nothing matches (near matches are listed), or a suffix or layer index matches nothing.

    Warns:
        UserWarning: ``"all-linear"`` leaves out matrices that are in no linear layer, as those of stacked experts are.

    >>> net = nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    >>> select(net, ["query"]), select(net, "all-linear")
    (['query'], ['query', 'key'])
    """
    spec = as_targets(targets)
    if not spec.names:
        raise TargetError(
            "The targets are empty; name layers, for example targets=['query', 'value'], or 'all-linear'."
        )
    wrapped = tuple(f"{path}." for path, module in backbone.named_modules() if _is_peft(module))
    linear = [
        path
        for path, module in backbone.named_modules()
        if path and dimensions(module) is not None and not path.startswith(wrapped)
    ]
    if not linear:
        raise TargetError(
            f"{type(backbone).__name__} has no torch.nn.Linear or transformers Conv1D layer to adapt. Is it a "
            "backbone, or a wrapper around one? Pass the transformer, for example AutoModel.from_pretrained(...)."
        )
    if spec.names == ALL_LINEAR:
        found = list(linear)
        _warn_of_stacked(backbone)
    else:
        found = [path for path in linear if _matches(path, spec.names)]
        _require_each_suffix(backbone, spec.names, linear, found)
    _require_each_exclusion(spec.exclude, linear)
    found = [path for path in found if not (spec.exclude and _matches(path, spec.exclude))]
    if spec.layers is not None:
        if not isinstance(spec.layers, Sequence) or not all(type(number) is int for number in spec.layers):
            raise TargetError(f"layers must be a list of block numbers, such as [0, 1], or None; got {spec.layers!r}.")
        index = {path: int(m.group(1)) for path in found if (m := _LAYER_INDEX.search(path))}
        missing = sorted(set(spec.layers) - set(index.values()))
        if missing:
            raise TargetError(
                f"No matched layer lies in block {missing}; matched blocks: {sorted(set(index.values()))}."
            )
        found = [path for path in found if index.get(path) in set(spec.layers)]
    if not found:
        raise TargetError(
            f"Everything that {spec.names!r} matches is excluded by {spec.exclude!r}: no layer is left to adapt."
        )
    return found


def _warn_of_stacked(backbone: nn.Module) -> None:
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


def _require_each_exclusion(exclude: str | Sequence[str], linear: list[str]) -> None:
    """Refuse an exclusion that matches nothing while some path has such a part; if none has, there is nothing to do."""
    parts = sorted({part for path in linear for part in path.split(".")})
    for name in [exclude] if isinstance(exclude, str) else exclude:
        near = near_matches(name, parts, cutoff=0.8)
        if near and not any(_matches(path, name if isinstance(exclude, str) else [name]) for path in linear):
            raise TargetError(
                f"exclude={name!r} matches no linear layer.{near} A list holds the ends of layer paths, one string is "
                f"a regular expression of the whole path, such as '.*{name}.*'."
            )


def _is_peft(module: nn.Module) -> bool:
    """Whether this is a layer that PEFT has put around a linear one."""
    return type(module).__module__.startswith("peft.tuners.") and hasattr(module, "base_layer")


def _require_each_suffix(backbone: nn.Module, names: str | Sequence[str], linear: list[str], found: list[str]) -> None:
    suffixes = sorted({path.rsplit(".", 1)[-1] for path in linear})
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        is_suffix = any(_matches(path, [name]) for path in linear)
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
            if _is_peft(other):
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
