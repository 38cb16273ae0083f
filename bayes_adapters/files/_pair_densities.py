"""Densities on pairs in the files of a saved adapter: their tensors beside those of model and guide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from bayes_adapters.files._adapter_checks import require_pair_densities
from bayes_adapters.files._folder import read_adapter

_PREFIX = "pair_density."


@runtime_checkable
class FittedPairs(Protocol):
    """What was fitted to pairs of inputs and contexts, such as :class:`bayes_adapters.reliability.PairDensity`."""

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return its tensors, all of them finite."""
        ...


def described(densities: Mapping[str, FittedPairs]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return an entry of the description per density, and the tensors of all of them by their names in the file."""
    require_pair_densities(densities)
    entries: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, (modality, density) in enumerate(densities.items()):
        entries.append({"modality": modality, "config": density.config()})
        tensors |= {f"{_PREFIX}{number}.{name}": value for name, value in density.state_dict().items()}
    return entries, tensors


def without(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that are none of the described densities'."""
    prefixes = tuple(f"{_PREFIX}{number}." for number in range(len(about.get("pair_densities", []))))
    return {name: value for name, value in tensors.items() if not name.startswith(prefixes)}


def read_pair_densities(directory: str | Path) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Return modality → configuration and tensors of the densities in a saved adapter; empty where there are none.

    Raises:
        AdapterFileError: the folder holds no readable adapter.
    """
    about, tensors = read_adapter(directory)
    found = {}
    for number, entry in enumerate(about.get("pair_densities", [])):
        prefix = f"{_PREFIX}{number}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        found[entry["modality"]] = (entry["config"], own)
    return found
