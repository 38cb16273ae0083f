"""What is refused in the files of a saved adapter, and before they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.errors import AdapterFileError, NonFiniteError

FORMAT = "bayes-adapters"
FORMAT_VERSION = 2
"""The newest that is read; what an adapter is saved as is :func:`version_of`."""
_NEEDS_2 = ("guide.posterior_temperature", "pair_densities")
"""Entries that version 1 did not know, and that must not be left out silently."""

_KIND = re.compile(r"([a-z][a-z0-9_]*)\[((?:\d{1,15}(?:, \d{1,15})*)?\])")


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types) and (not isinstance(value, bool) or bool in types)


def _dict_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(fits(entry) for entry in value.values())


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(fits(entry) for entry in value)


def _is_prior(entry: Any) -> bool:
    return (
        isinstance(entry, dict) and isinstance(entry.get("family"), str) and isinstance(entry.get("parameters"), dict)
    )


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("config"), dict)


def _is_density(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("modality"), str) and isinstance(entry.get("config"), dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_float_dtype(value: Any) -> bool:
    dtype = getattr(torch, value, None) if isinstance(value, str) else None
    return value is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)


_text, _options = _is(str), _is(dict)
_SECTIONS: dict[str, Callable[[Any], bool]] = {
    "versions": _dict_of(_text),
    "model": _options,
    "model.structure": _text,
    "model.config": _options,
    "model.config.targets": _list_of(_text),
    "model.prior_dtype": _is_float_dtype,
    "likelihood": _options,
    "likelihood.name": _text,
    "likelihood.config": _options,
    "prior": _dict_of(_is_prior),
    "guide": _options,
    "guide.name": _text,
    "guide.config": _options,
    "num_data": lambda value: value is None or (_is_count(value) and value > 0),
    "base": _options,
    "base.class": _text,
    "base.name_or_path": _text,
    "base.dtype": _text,
    "base.parameters": _is_count,
    "base.fingerprint": _text,
    "weights": _options,
    "weights.sha256": _text,
    "weights.tensors": _dict_of(lambda kind: isinstance(kind, str) and is_kind(kind)),
    "task": _is(dict, type(None)),
}
_LATER: dict[str, Callable[[Any], bool]] = {
    "guide.posterior_temperature": _is_positive,
    "base.tensors": _text,
    "base.config": _options,
    "base.layers": _text,
    "frozen": _list_of(_text),
    "head": _options,
    "head.name": _text,
    "head.config": _options,
    "untrained_head": _is(bool),
    "calibration": _list_of(_is_named),
    "pair_densities": _list_of(_is_density),
    "peft": _dict_of(_is(str, type(None))),
    "written_into_base": _list_of(_text),
    "checksum": _text,
}
"""Entries that older files lack."""


def require_description(path: Path, about: Any) -> dict[str, Any]:
    """Return the contents of ``adapter.json`` as a dictionary whose sections have the types they are read as.

    Raises:
        AdapterFileError: it describes no adapter, one of a newer format, or a section is missing or of another type.
    """
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise AdapterFileError(
            f"{str(path)!r} is JSON but describes no adapter of this library (its 'format' is not {FORMAT!r}). "
            "Give the folder that bayes_adapters.save wrote."
        )
    number = about.get("format_version")
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= FORMAT_VERSION:
        raise AdapterFileError(
            f"{str(path)!r} has format version {number!r}; this library reads versions 1 to {FORMAT_VERSION}. "
            "A newer bayes-adapters wrote it: update this one."
        )
    wrong = [key for key, fits in _SECTIONS.items() if not fits(_at(about, key))]
    wrong += [key for key, fits in _LATER.items() if (value := _at(about, key)) is not ... and not fits(value)]
    wrong += ["base.config"] if (_at(about, "base.tensors") is ...) != (_at(about, "base.config") is ...) else []
    if wrong:
        raise AdapterFileError(
            f"{str(path)!r} lacks or misstates {', '.join(wrong)}. It was altered after saving; save the adapter again."
        )
    return about


def version_of(about: Mapping[str, Any]) -> int:
    """Return the oldest format version that reads all of a description: an older library refuses a newer one."""
    return 2 if any(_at(about, key) is not ... for key in _NEEDS_2) else 1


def require_same(path: Path, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise :class:`AdapterFileError` listing every tensor that is missing, surplus, or of another shape or dtype."""
    wrong = [f"{name} is missing" for name in sorted(expected) if name not in found]
    wrong += [f"{name} is surplus" for name in sorted(found) if name not in expected]
    wrong += [
        f"{name} is {found[name]} where {kind} is {what}"
        for name, kind in sorted(expected.items())
        if name in found and kind != found[name]
    ]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise AdapterFileError(
            f"{str(path)!r} does not fit: {'; '.join(wrong[:8])}{more}. It was altered after saving, or the code that "
            "builds the adapter changed; copy the whole folder again, or save the adapter again."
        )


def not_finite(tensors: Mapping[str, Tensor], slots: Mapping[str, Tensor]) -> str | None:
    """Say which tensor holds NaN, or, of the parameters among ``slots``, an infinity; None if none does.

    A buffer may hold an infinity: it can be a limit that is never reached.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex():
            wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
            bad = ~wide.isfinite() if isinstance(slots.get(name), nn.Parameter) else wide.isnan()
            if count := int(bad.sum()):
                return f"{name!r} holds {count} of {tensor.numel()} values that are NaN or infinite"
    return None


def require_finite(slots: Mapping[str, Tensor]) -> None:
    """Raise :class:`NonFiniteError` if a tensor that would be saved holds NaN, or a parameter an infinity."""
    wrong = not_finite(slots, slots)
    if wrong:
        raise NonFiniteError(
            f"The tensor {wrong}, and no prediction from it means anything; nothing was written. Training has "
            "diverged: go back to an earlier checkpoint, or train again with a smaller learning rate."
        )


def kind(tensor: Tensor) -> str:
    """Say a tensor's dtype and shape, for example ``float32[8, 384]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → :func:`kind`, every real one as float32: what is read keeps the dtype that it was saved in."""
    return {name: kind(t.float() if t.is_floating_point() else t) for name, t in tensors.items()}


def is_kind(text: str) -> bool:
    """Whether ``text`` is what :func:`kind` can have written."""
    match = _KIND.fullmatch(text)
    return match is not None and isinstance(getattr(torch, match[1], None), torch.dtype)


def entries_of(text: str) -> int:
    """Return how many entries a tensor of this :func:`kind` has.

    >>> entries_of("float32[8, 384]"), entries_of("int64[]")
    (3072, 1)
    """
    sizes = text[text.index("[") + 1 : -1]
    return math.prod(int(size) for size in sizes.split(", ")) if sizes else 1


def bytes_of(text: str) -> int:
    """Return how many bytes a tensor of this :func:`kind` has."""
    dtype: torch.dtype = getattr(torch, text[: text.index("[")])
    return entries_of(text) * dtype.itemsize


def _at(about: Any, key: str) -> Any:
    """The value at a dotted key; an Ellipsis, which is of no JSON type, where there is none."""
    for part in key.split("."):
        about = about.get(part, ...) if isinstance(about, dict) else ...
    return about
