"""What ``fit`` reads: batches of any data set in an order that can be repeated, and what data say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import integer, whole_number
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Part
from bayes_adapters.training import _data_checks
from bayes_adapters.training._random import epoch_seed
from bayes_adapters.training._transformed import Transformed


@dataclass(eq=False)
class Batches:
    """Batches of a data set in an order that depends on (seed, epoch) only; see :func:`batches`."""

    dataset: Any
    batch_size: int
    collate: Callable[[list[Any]], Batch] | None = None
    shuffle: bool = True
    seed: int = 0
    drop_last: bool = False
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        whole_number("batch_size", self.batch_size)
        self.seed = integer("seed", self.seed)
        _data_checks.check_data_set(self.dataset, self.collate)
        _data_checks.require_some(len(self), f"batch of {self.batch_size} in {self.examples} examples")

    @property
    def examples(self) -> int:
        """The number of examples of the data set."""
        return self.dataset.size if isinstance(self.dataset, Batch) else len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; :func:`bayes_adapters.training.fit` calls this with 0, 1 and so on."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.examples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(self.examples, device="cpu")
        if self.shuffle:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch, "order"))
            order = torch.randperm(self.examples, generator=generator, device="cpu")
        for rows in order.split(self.batch_size)[: len(self)]:
            yield self.dataset[rows] if self.collate is None else self.collate([self.dataset[i] for i in rows.tolist()])


def batches(
    dataset: Any,
    batch_size: int,
    collate: Callable[[list[Any]], Batch] | None = None,
    *,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
) -> Batches:
    """Cut a data set into batches, in a new order every epoch that depends on (seed, epoch) only.

    Args:
        dataset: anything with ``len`` and items by number (a list, a torch ``Dataset``), or one large :class:`Batch`.
        batch_size: examples a batch; the last batch may be smaller.
        collate: list of items → :class:`Batch`; None only for a data set that is a Batch.
        shuffle: permute the examples; without it they come in their own order.
        seed: any integer.
        drop_last: leave out a last batch that is smaller.

    Returns:
        A sized re-iterable of :class:`Batch` with ``set_epoch``, as :func:`bayes_adapters.training.fit` takes it.

    Raises:
        ConfigError: ``batch_size`` below 1, or no ``collate`` for a data set that needs one.
        DataError: the data set is empty or has no items by number.

    >>> items = [(1, 0.), (2, 1.), (3, 0.)]
    >>> def collate(rows):
    ...     return Batch({"input_ids": torch.tensor([[i] for i, _ in rows])}, torch.tensor([y for _, y in rows]))
    >>> [batch.targets.tolist() for batch in batches(items, 2, collate, shuffle=False)]
    [[0.0, 1.0], [0.0]]
    """
    return Batches(dataset, batch_size, collate, shuffle, seed, drop_last)


def listed(data: Any) -> Any:
    """Return ``data``, a lone :class:`Batch` as a list of one."""
    return [data] if isinstance(data, Batch) else data


def readable(data: Any, name: str, passes: int | None) -> Iterable[Batch]:
    """Return ``data``; refuse what cannot be read ``passes`` times (None: unknown), or has no batch."""
    _data_checks.check_iterable(data, name, passes)
    _data_checks.require_some(count(data), f"batch in {name}")
    return data


def count(data: Any) -> int | None:
    """Return the number of batches an epoch has, or None where nobody knows."""
    try:
        return len(data)
    except TypeError:  # a DataLoader over an iterable data set has __len__ and refuses it
        return None


def source(data: Any) -> Any:
    """The data behind any transforms."""
    while isinstance(data, Transformed):
        data = data.source
    return data


def _examples(data: Any) -> int | None:
    """The size of the data set, where the data say it; a loader without batch sampler gives whole batches."""
    data = source(data)
    if isinstance(data, Batches):
        return data.examples
    return count(data.dataset) if isinstance(data, DataLoader) and data.batch_sampler is not None else None


def check_size(data: Any, model: AdapterModel) -> None:
    """Raise :class:`ConfigError` if the data set is known to be of another size than the one KL per data set counts."""
    _data_checks.require_num_data(model.num_data, _examples(data) if counts_data_set(model) else None)


def counts_data_set(model: AdapterModel) -> bool:
    """Whether a KL per data set is counted, so that the model's ``num_data`` matters; a mask has no KL."""
    counted = any(site.granularity is Granularity.GLOBAL and site.part != Part.MASK for site in model.latent_sites)
    return counted or bool(model.prior.hyper_sites)


def sizes(data: Any, model: AdapterModel) -> tuple[int, int]:
    """Return N, the examples that an epoch yields, and B, those of a batch, for a recipe that depends on them.

    Raises:
        ConfigError: the data do not say.
    """
    data = source(data)
    examples, size = _examples(data), getattr(data, "batch_size", None)
    size = size or getattr(getattr(data, "batch_sampler", None), "batch_size", None)
    if isinstance(data, Sequence):
        listed = [batch.size for batch in data if isinstance(batch, Batch)]
        examples, size = sum(listed), max(listed, default=None)
    examples = examples or model.num_data
    if examples is None or size is None:
        raise _data_checks.no_sizes(data)
    return examples, min(size, examples)


def read(
    data: Iterable[Any], name: str, epoch: int, reads: Iterable[str] = (), tasks: Collection[str] = ()
) -> Iterator[Batch]:
    """Yield the batches of one pass.

    A batch may lack its context, but where all do, it was forgotten, and training would go on without it. So it may
    lack labels of one of ``tasks``.

    Raises:
        DataError: an item is no batch with targets; or, at the end, there was none, or none with one of ``reads``.

    Warns:
        UserWarning: at the end, no batch had a label of one of ``tasks``.
    """
    found, missing, unlabelled = 0, set(reads), set(tasks)
    for found, batch in enumerate(data, 1):
        _data_checks.check_batch(batch, found - 1, name)
        missing -= set(batch.context)
        if unlabelled:
            unlabelled -= _data_checks.labelled_tasks(batch, unlabelled)
        yield batch
    _data_checks.require_some(found, f"batch of {name} in epoch {epoch}")
    _data_checks.require_context(missing)
    _data_checks.warn_of_tasks(unlabelled)


def loader_parts(data: Any) -> list[Any]:
    """Return a DataLoader and its samplers, each once; of other data nothing."""
    if not isinstance(data, DataLoader):
        return []
    inner = getattr(data.batch_sampler, "sampler", None)
    return list({id(part): part for part in (data, data.sampler, data.batch_sampler, inner)}.values())


def set_epoch(data: Any, epoch: int) -> None:
    """Tell the data, their data set and a loader's samplers which epoch starts, wherever they have ``set_epoch``."""
    while isinstance(data, Transformed):
        data.epoch, data = epoch, data.source
    behind = [data.dataset] if isinstance(data, Batches | DataLoader) else []
    for part in [*(loader_parts(data) or [data]), *behind]:
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)


def own_generators(data: Any) -> list[torch.Generator]:
    """Return the generators a DataLoader draws its order from."""
    found = (getattr(part, "generator", None) for part in loader_parts(source(data)))
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def describe(data: Any) -> dict[str, Any]:
    """Return what must be the same for a run to be continued, as JSON.

    Beside what is known of the library's own classes and a DataLoader, that is whatever ``identity()`` says of the data
    and of the data set behind them, where they have that method.

    Raises:
        ConfigError: an identity is no dictionary, or holds something else than JSON.
    """
    if isinstance(data, Transformed):
        found = describe(data.source)
        return found | {"transforms": [*found.get("transforms", []), data.described()]}
    out: dict[str, Any] = {"batches": count(data)}
    parts = {"identity": data}
    if isinstance(data, Batches):
        out |= {"examples": data.examples, "batch_size": data.batch_size, "shuffle": data.shuffle, "seed": data.seed}
    if isinstance(data, DataLoader):
        out |= {"batch_size": data.batch_size}
    if isinstance(data, Batches | DataLoader):
        parts["dataset"] = data.dataset
    known = {name: part for name, part in parts.items() if callable(getattr(part, "identity", None))}
    return out | {name: _data_checks.checked_identity(part) for name, part in known.items()}
