"""What the choice of a gate refuses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError, unknown_name


def check_gates(gates: Iterable[float], cost: float) -> list[float]:
    """Return 0 and the gates in rising order; raise :class:`ConfigError` unless all of them and the cost are usable."""
    given = list(gates) if isinstance(gates, Iterable) else [gates]
    usable = all(isinstance(gate, int | float) and 0.0 <= gate <= 1.0 for gate in given)
    if not isinstance(gates, Iterable) or not usable or not any(given):
        raise ConfigError(f"gates are several numbers from 0 to 1, one above 0 at least; got {gates!r}.")
    if not isinstance(cost, int | float) or not 0.0 <= cost < math.inf:
        raise ConfigError(f"cost is nats that validation must gain, at least 0; got {cost!r}.")
    return sorted({0.0, *map(float, given)})


def require_gated(model: Any, guide: Any, modality: str | None) -> tuple[str, list[Any]]:
    """Return the modality, and those of guide and model that have a gate for it.

    Raises:
        ConfigError: there is none, or several and none was named; or the guide has no null context.
    """
    # Wander's gates are learned, and of another kind
    owners = [owner for owner in (guide, model) if isinstance(getattr(owner, "gate", None), dict)]
    names = sorted({name for owner in owners for name in owner.gate})
    if not names:
        raise ConfigError(
            f"Neither this {type(guide).__name__} nor this {type(model).__name__} reads a context with a gate. Take a "
            "guide that reads one, such as CrossAttention or PooledContext, or a model of late fusion."
        )
    if modality is None and len(names) > 1:
        raise ConfigError(f"There are gates for {names}: say which by modality=, one after the other.")
    name = names[0] if modality is None else modality
    if name not in names:
        raise unknown_name("context", str(name), names)
    if any(owner is guide and name in guide.gate for owner in owners) and not guide.null_context:
        raise ConfigError(
            f"This {type(guide).__name__} was built with null_context=False: a closed gate has nothing to give in the "
            "place of the context. Build it with null_context=True, and train it on some examples without context."
        )
    return name, [owner for owner in owners if name in owner.gate]


def require_heard(batches: Sequence[Batch], modality: str) -> None:
    """Raise :class:`DataError` if no validation example has the context, so that all gates were alike."""
    if batches and not any(bool(b.context[modality].present.any()) for b in batches if modality in b.context):
        raise DataError(
            f"No validation example has the context {modality!r}, so every gate gives the same answer. Pass "
            f"Batch(..., context={{{modality!r}: Frames(values, mask)}}) with real frames."
        )


def require_density_of(prediction: Any) -> Tensor:
    """Return log p̄(y) of the examples; raise :class:`DataError` if they have no targets."""
    found: Tensor | None = prediction.log_density
    if found is None:
        raise DataError("The validation examples have no targets, which the gate's likelihood is of.")
    return found
