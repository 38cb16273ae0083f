"""What is refused of several adapters by names on one backbone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, described
from bayes_adapters.inference.model import AdapterModel


def require_free_name(name: object, names: Collection[str]) -> None:
    """Raise :class:`ConfigError` unless ``name`` is a text that none of ``names`` is."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"An adapter's name is a text; got {described(name)}.")
    if name in names:
        raise ConfigError(f"There is an adapter {name!r} already: delete({name!r}) first, or take another name.")


def require_same_backbone(model: AdapterModel, backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` unless the model's backbone is this very object."""
    if not isinstance(model, AdapterModel):
        raise ConfigError(f"add(name, model, guide) takes a model of this library; got {described(model)}.")
    if model.backbone is not backbone:
        raise ConfigError(
            f"This {type(model).__name__} is on another {type(model.backbone).__name__} than these adapters share. "
            "Build it, or load it, on named.bare()."
        )


def require_rows(names: Sequence[str], batch: Batch) -> None:
    """Raise :class:`ConfigError` unless there is one name for each row of the batch."""
    if isinstance(names, str) or len(names) != batch.size:
        given = repr(names) if isinstance(names, str) else f"{len(names)} names"
        raise ConfigError(f"A batch of {batch.size} rows needs {batch.size} names of adapters; got {given}.")
