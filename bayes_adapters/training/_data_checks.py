"""What is refused of the data of ``fit``, before training and while it reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sized
from typing import Any

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError

_FIX = (
    "Pass a list of Batch, bayes_adapters.training.batches(dataset, batch_size, collate), or a DataLoader whose "
    "collate_fn returns a Batch."
)


def require_data_set(dataset: object, collate: object) -> None:
    """Raise an error unless ``dataset`` is one Batch, or has a length and items by number that ``collate`` joins.

    Raises:
        ConfigError: no ``collate`` for a data set that needs one.
        DataError: the data set has no length or no items by number.
    """
    if collate is None and not isinstance(dataset, Batch):
        raise ConfigError(
            f"A {type(dataset).__name__} needs collate=, a function from a list of its items to a Batch; only a "
            "data set that is itself one large Batch does without."
        )
    if not isinstance(dataset, Batch) and not (hasattr(dataset, "__getitem__") and isinstance(dataset, Sized)):
        raise DataError(
            f"batches() needs a data set with len() and items by number; got {type(dataset).__name__}. "
            "Collect an iterable first: list(items)."
        )


def require_one_batch(batches: Sized, examples: int, batch_size: int) -> None:
    """Raise :class:`DataError` if ``batches``, of ``examples`` examples, are none."""
    if len(batches) == 0:
        raise DataError(
            f"The data set has {examples} examples: not one batch of {batch_size}. Was a filter too strict?"
        )


def require_iterable(data: object, name: str, passes: int | None) -> None:
    """Raise :class:`DataError` unless ``data`` can be read ``passes`` times; None is a number that nobody knows."""
    if not hasattr(data, "__iter__"):
        raise DataError(f"{name} must be an iterable of Batch; got {type(data).__name__}. {_FIX}")
    if isinstance(data, Iterator) and passes != 1 and passes is not None:
        raise DataError(
            f"{name} is a {type(data).__name__}, which can be read only once, and training reads it every epoch. "
            f"Use list({name}), or an object whose __iter__ starts anew."
        )


def require_not_empty(name: str, count: int | None) -> None:
    """Raise :class:`DataError` if the data called ``name`` have 0 batches; None is a number that nobody knows."""
    if count == 0:
        raise DataError(
            f"{name} is empty (0 batches). Was a filter too strict, or is drop_last set on fewer examples than a batch?"
        )


def require_num_data(num_data: int | None, examples: int | None) -> None:
    """Raise :class:`ConfigError` unless ``num_data`` of a model is the number of examples, where that is known."""
    if examples is not None and examples != num_data:
        raise ConfigError(
            f"The model was built with num_data={num_data} and the data have {examples} examples: the KL of "
            f"its global sites would be weighed wrongly. Build it with num_data={examples}."
        )


def no_sizes(data: object) -> ConfigError:
    """Build the error for data that do not say how many examples they and their batches have."""
    return ConfigError(
        f"The recipe depends on the sizes of the data set and of its batches, and this {type(data).__name__} does "
        "not say them. Pass a list of Batch or bayes_adapters.training.batches(...), or the options themselves: "
        "fit(..., **recipe.fit_options(model, guide, num_data=…, batch_size=…))."
    )


def require_targets(batch: object, number: int, name: str) -> None:
    """Raise :class:`DataError` unless item ``number`` of the data called ``name`` is a Batch with targets."""
    if not isinstance(batch, Batch):
        raise DataError(f"Item {number} of {name} is a {type(batch).__name__}, not a Batch. {_FIX}")
    if batch.targets is None:
        raise DataError(
            f"Batch {number} of {name} has no targets. Pass Batch(inputs, targets=...); only predict() does without."
        )


def require_context(missing: set[str]) -> None:
    """Raise :class:`DataError` if there are modalities of the context that no batch of an epoch had."""
    if missing:
        name = min(missing)
        raise DataError(
            f"Model or guide reads the context {name!r}, and no batch of the epoch had any. Pass Batch(..., "
            f"context={{{name!r}: Frames(values, mask)}}); to train without it on purpose, pass frames whose mask is "
            "False everywhere."
        )


def require_identity(part: object, found: object) -> None:
    """Raise :class:`ConfigError` unless ``found``, the ``identity()`` of ``part``, is a dictionary of JSON."""
    try:
        fine = isinstance(found, dict) and bool(json.dumps(found, allow_nan=False))
        reason = f"it is a {type(found).__name__}"
    except (TypeError, ValueError) as error:
        fine, reason = False, str(error)
    if not fine:
        raise ConfigError(
            f"{type(part).__name__}.identity() must return a dictionary of JSON, which checkpoints can hold: {reason}. "
            "Use strings, finite numbers, lists and dicts; of large things, a checksum."
        )


def require_steps(records: list[Any], epoch: int) -> None:
    """Raise :class:`DataError` if an epoch, counted from 0, had no step."""
    if not records:
        raise DataError(
            f"The data gave no batch in epoch {epoch}, though earlier epochs had some. Is it an "
            "iterator that was used up? Pass list(data), or an object whose __iter__ starts anew."
            if epoch
            else "The data hold no batch. Was a filter too strict, or an iterator used up?"
        )


def too_few(epoch: int, batches: int, found: int) -> DataError:
    """Build the error for data with ``found`` batches where a checkpoint was written after ``batches``."""
    return DataError(
        f"The checkpoint was written after {batches} batches of epoch {epoch}; the "
        f"data now have only {found}. Pass the same data, or resume=False."
    )
