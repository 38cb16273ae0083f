"""Which contexts a guide or a model reads, how wide each is, and how far each counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from bayes_adapters.data._checks import one_modality
from bayes_adapters.errors import ConfigError, unknown_name, whole_number

_T = TypeVar("_T")


def context_widths(context_dim: int | Mapping[str, int], modality: str) -> dict[str, int]:
    """Return modality → d_a in the order of the names, so that no order of theirs is another model.

    Args:
        context_dim: the width of the frames of ``modality``, or modality → width of several contexts.
        modality: the key of the frames of one context in ``Batch.context``.

    Raises:
        ConfigError: a width below 1, no modality, ``modality`` beside a mapping, or names of several that torch's
            modules cannot hold side by side.

    >>> context_widths(6, "audio"), context_widths({"image": 8, "audio": 6}, "audio")
    ({'audio': 6}, {'audio': 6, 'image': 8})
    """
    if not isinstance(context_dim, Mapping):
        whole_number("context_dim", context_dim)
        return {one_modality(modality): context_dim}
    if not context_dim:
        raise ConfigError("context_dim={} names no context. Pass modality → width of its frames, or one width.")
    if modality != "audio" and list(context_dim) != [modality]:
        raise ConfigError(
            f"modality={modality!r} has no effect beside context_dim={dict(context_dim)}, which names the modalities. "
            "Leave it out."
        )
    for name, width in context_dim.items():
        whole_number(f"context_dim of {one_modality(name)!r}", width)
    if len(context_dim) > 1:
        _require_keys(list(context_dim))
    return dict(sorted(context_dim.items()))


def context_gates(gate: float | Mapping[str, float], widths: Mapping[str, int], has_null: bool) -> dict[str, float]:
    """Return modality → g of every context.

    Args:
        gate: g of all contexts, or modality → g; 1 where a modality is left out.
        widths: modality → d_a.
        has_null: whether there is something in the place of a missing context.

    Raises:
        ConfigError: a gate outside [0, 1] or of no context; or one below 1 without a null context.

    >>> context_gates({"image": 0.5}, {"audio": 6, "image": 8}, True)
    {'audio': 1.0, 'image': 0.5}
    """
    given = dict(gate) if isinstance(gate, Mapping) else dict.fromkeys(widths, gate)
    for name, value in given.items():
        if name not in widths:
            raise unknown_name("context in gate", str(name), widths)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise ConfigError(
                f"gate is the share of a context's effect, from 0 (as if missing) to 1; got {value!r} for {name!r}."
            )
        if value < 1.0 and not has_null:
            raise ConfigError(
                f"gate={value!r} goes from what a missing context gives to what {name!r} gives, and with "
                "null_context=False there is no former. Build the guide with null_context=True."
            )
    return {name: float(given.get(name, 1.0)) for name in widths}


def gate_option(gate: Mapping[str, float], widths: Mapping[str, int], has_null: bool) -> dict[str, Any]:
    """Return gates as an option of a constructor, none where all are open; a gate may have been set since.

    Raises:
        ConfigError: see :func:`context_gates`.
    """
    found = context_gates(gate, widths, has_null)
    return {} if all(g == 1.0 for g in found.values()) else {"gate": as_given(found)}


def as_given(values: Mapping[str, _T]) -> _T | dict[str, Any]:
    """Return the value of the one context there is, or the dictionary of several, as options and JSON have them."""
    return next(iter(values.values())) if len(values) == 1 else dict(values)


def module_key(modality: str) -> str:
    """Return a modality's name as a key of ``nn.ModuleDict`` or ``nn.ParameterDict``, which allow no dots."""
    return modality.replace(".", "-")


def _require_keys(names: list[str]) -> None:
    """Raise :class:`ConfigError` unless parts of a module may have these names, each another one."""
    keys, taken = [module_key(name) for name in names], (nn.ModuleDict(), nn.ParameterDict())
    for name, key in zip(names, keys, strict=True):
        if any(hasattr(module, key) for module in taken):
            raise ConfigError(
                f"The context {name!r} has the name of an attribute of torch's modules, so that no part of one can be "
                f"called that. Rename it in context_dim and in Batch.context, for example {name + '_frames'!r}."
            )
        if keys.count(key) > 1:
            raise ConfigError(
                f"The contexts {sorted(n for n in names if module_key(n) == key)} differ by dots and hyphens only, and "
                "torch allows no dots in the name of a module's part. Rename one."
            )
