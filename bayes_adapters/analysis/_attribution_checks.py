"""What attributing uncertainty to modalities refuses."""

from __future__ import annotations

from collections.abc import Sequence

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.inference._checks import require_withholdable
from bayes_adapters.inference.model import AdapterModel

_MOST = 7  # modalities: 128 subsets


def require_batches(batches: Sequence[object]) -> None:
    """Raise :class:`DataError` unless there is a batch, and nothing else."""
    if not batches or not all(isinstance(batch, Batch) for batch in batches):
        raise DataError(
            f"attribute() takes a Batch or an iterable of them; it found {'none' if not batches else 'something else'}."
        )


def require_subsets(players: int, subsets: int) -> None:
    """Raise :class:`ConfigError` unless there is a value for each of the players' ``2^players`` subsets."""
    if subsets != 2**players:
        raise ConfigError(f"{players} players have {2**players} subsets; got values of {subsets}.")


def require_any_withholdable(model: AdapterModel, allowed: Sequence[str]) -> None:
    """Raise :class:`ConfigError` where no modality can be withheld."""
    if not allowed:
        raise ConfigError(
            f"Nothing can be withheld: the batches have no context, and this {type(model).__name__} always needs the "
            "inputs of its backbone. With a single modality there is nothing to attribute to; put context into the "
            "batches, or take a model of several encoders, such as CoLA."
        )


def require_names(modalities: Sequence[str] | None, names: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless the modalities are a list of different names that can be withheld.

    Args:
        modalities: what the caller gave.
        names: the same as a list; all that are allowed for None.
        allowed: what can be withheld.
    """
    if isinstance(modalities, str) or not names or len(set(names)) != len(names):
        raise ConfigError(
            f"modalities must be a list of different names, or None for all; got {modalities!r}. Available: "
            f"{', '.join(allowed)}."
        )
    require_withholdable(names, allowed)


def require_few(names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` where there are too many modalities for Shapley values."""
    if len(names) > _MOST:
        raise ConfigError(
            f"Shapley values of {len(names)} modalities need {2 ** len(names)} predictions; at most {_MOST} modalities "
            "are allowed. Name some in modalities=, or take method='withhold'."
        )
