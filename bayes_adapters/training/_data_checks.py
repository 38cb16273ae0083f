"""What is refused of the data of ``fit``, before training and while it reads them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from typing import Any

from bayes_adapters.data._transform_checks import never_there
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, DataError, described
from bayes_adapters.likelihoods._outcomes import labelled

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Where an object is in memory, in its ``repr``: another place in the next process."""
_FIX = (
    "Pass a list of Batch, bayes_adapters.training.batches(dataset, batch_size, collate), or a DataLoader whose "
    "collate_fn returns a Batch."
)


def require_any_of(transforms: Sequence[Any], seen: Collection[str]) -> None:
    """Raise :class:`ConfigError` where a transform's modality was in no batch of an epoch, while others were."""
    for transform in transforms:
        modality = getattr(transform, "modality", None)
        if isinstance(modality, str) and seen and modality not in seen:
            raise never_there(modality, seen)


def require_some(count: int | None, what: str) -> None:
    """Raise :class:`DataError` if there are 0 of ``what``; None is a number that nobody knows."""
    if count == 0:
        raise DataError(
            f"There is no {what}. Was a filter too strict, is drop_last set on fewer examples than a batch, or was an "
            "iterator used up? Pass list(data), or an object whose __iter__ starts anew."
        )


def check_data_set(dataset: object, collate: object) -> None:
    """Raise an error unless ``dataset`` is one Batch, or has a length and items by number that ``collate`` joins."""
    if isinstance(dataset, Batch):
        return
    kind = type(dataset).__name__
    if collate is None:
        raise ConfigError(
            f"A {kind} needs collate=, a function from a list of its items to a Batch; only a data set that is itself "
            "one large Batch does without."
        )
    if not (hasattr(dataset, "__getitem__") and isinstance(dataset, Sized)):
        raise DataError(
            f"batches() needs a data set with len() and items by number; got {kind}. Collect an iterable first: "
            "list(items)."
        )


def check_iterable(data: object, name: str, passes: int | None) -> None:
    """Raise :class:`DataError` unless ``data`` can be read ``passes`` times; None is a number that nobody knows."""
    if not hasattr(data, "__iter__"):
        raise DataError(f"{name} must be an iterable of Batch; got {type(data).__name__}. {_FIX}")
    if isinstance(data, Iterator) and passes != 1 and passes is not None:
        raise DataError(
            f"{name} is a {type(data).__name__}, which can be read only once, and training reads it every epoch. "
            f"Use list({name}), or an object whose __iter__ starts anew."
        )


def check_transforms(data: object, transforms: Sequence[object]) -> None:
    """Raise an error unless there are transforms, all of them can be called, and ``data`` can be read each epoch."""
    check_iterable(data, "data", 2)
    if not transforms:
        raise ConfigError("transformed() needs a transform, such as bayes_adapters.data.transforms.ModalityDropout().")
    for transform in transforms:
        if isinstance(transform, type) or not callable(transform):
            given = f"the class {transform.__name__}" if isinstance(transform, type) else described(transform)
            raise ConfigError(
                f"A transform is a callable (batch, generator) → batch, such as ModalityDropout('audio', p=0.5); got "
                f"{given}."
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
        "fit(..., **recipe.fit_options(model, guide, num_data=…, batch_size=…)). recipe=None takes none: the ELBO, by "
        "AdamW."
    )


def check_batch(batch: object, number: int, name: str) -> None:
    """Raise :class:`DataError` unless item ``number`` of the data called ``name`` is a Batch with targets."""
    if not isinstance(batch, Batch):
        raise DataError(f"Item {number} of {name} is a {type(batch).__name__}, not a Batch. {_FIX}")
    if batch.targets is None:
        raise DataError(
            f"Batch {number} of {name} has no targets. Pass Batch(inputs, targets=...); only predict() does without."
        )


def require_context(missing: Collection[str]) -> None:
    """Raise :class:`DataError` if there are modalities of the context that no batch of an epoch had."""
    if missing:
        name = min(missing)
        raise DataError(
            f"Model or guide reads the context {name!r}, and no batch of the epoch had any. Pass Batch(..., "
            f"context={{{name!r}: Frames(values, mask)}}); to train without it on purpose, pass frames whose mask is "
            "False everywhere."
        )


def labelled_tasks(batch: Batch, tasks: Collection[str]) -> set[str]:
    """Return those of ``tasks`` of which an example of the batch has a label."""
    targets = batch.targets if isinstance(batch.targets, Mapping) else {}
    return {name for name in tasks if name in targets and bool(labelled(targets[name]).any())}


def warn_of_tasks(tasks: Collection[str]) -> None:
    """Warn of tasks of which no batch of an epoch had a label."""
    if tasks:
        warnings.warn(
            f"No example of the epoch has a label of the tasks {sorted(tasks)}: nothing teaches their part of the "
            "head, and what it predicts means nothing. Add their targets (other than -100 and NaN), or leave these "
            "tasks out of Tasks.",
            UserWarning,
            stacklevel=2,
        )


def checked_identity(part: Any) -> dict[str, Any]:
    """Return ``part.identity()``; raise :class:`ConfigError` unless it is a dictionary of JSON."""
    found = part.identity()
    try:
        json.dumps(found, allow_nan=False)
        wrong = None if isinstance(found, dict) else f"it is a {type(found).__name__}"
    except (TypeError, ValueError) as error:
        wrong = str(error)
    if wrong is not None:
        raise ConfigError(
            f"{type(part).__name__}.identity() must return a dictionary of JSON, which checkpoints can hold: {wrong}. "
            "Use strings, finite numbers, lists and dicts; of large things, a checksum."
        )
    return dict(found)


def too_few(epoch: int, batches: int, found: int) -> DataError:
    """Build the error for data with ``found`` batches where a checkpoint was written after ``batches``."""
    return DataError(
        f"The checkpoint was written after {batches} batches of epoch {epoch}; the "
        f"data now have only {found}. Pass the same data, or resume=False."
    )
