"""Which linear layers of a backbone get an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bayes_adapters.adapters._target_checks import (
    is_peft,
    matches,
    require_blocks,
    require_each_exclusion,
    require_each_suffix,
    require_left,
    require_linear,
    require_named,
    require_numbers,
    warn_of_stacked,
)
from bayes_adapters.adapters.linear_layers import dimensions as dimensions
from bayes_adapters.adapters.linear_layers import linear_size as linear_size

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
    require_named(spec.names)
    wrapped = tuple(f"{path}." for path, module in backbone.named_modules() if is_peft(module))
    linear = [
        path
        for path, module in backbone.named_modules()
        if path and dimensions(module) is not None and not path.startswith(wrapped)
    ]
    require_linear(backbone, linear)
    if spec.names == ALL_LINEAR:
        found = list(linear)
        warn_of_stacked(backbone)
    else:
        found = [path for path in linear if matches(path, spec.names)]
        require_each_suffix(backbone, spec.names, linear, found)
    require_each_exclusion(spec.exclude, linear)
    found = [path for path in found if not (spec.exclude and matches(path, spec.exclude))]
    if spec.layers is not None:
        require_numbers(spec.layers)
        index = {path: int(m.group(1)) for path in found if (m := _LAYER_INDEX.search(path))}
        require_blocks(spec.layers, index)
        found = [path for path in found if index.get(path) in set(spec.layers)]
    require_left(found, spec.names, spec.exclude)
    return found
