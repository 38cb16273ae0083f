"""What a Trainer's loader reads: rows of a data set, in the order of ``fit``, as batches; each process its own part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, Dataset

from bayes_adapters.data.batch import Batch
from bayes_adapters.data.streams import TOKEN_MASK
from bayes_adapters.errors import DataError
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.trainer import _checks
from bayes_adapters.training._random import epoch_seed

LABELS = ("labels", "label", "label_ids")
"""Names of the targets in a data set of dictionaries."""


class Parts(BatchSampler):
    """Numbers of the rows of each batch that are this process's.

    Batch i of B examples is that of :func:`bayes_adapters.training.batches`, in the order of (seed, epoch); process p
    of P has the p-th part of its rows. Where that is empty, it has the batch's first row as ``−1 − row``: computed, so
    that all processes do the same, and counted nowhere.

    Args:
        examples: N.
        batch_size: B, of all processes together.
        shuffle, seed, drop_last: as of ``batches``.
        process, processes: p and P.

    >>> [rows for rows in Parts(7, 3, shuffle=False, processes=2, process=1)]
    [[2], [5], [-7]]
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(range(examples), batch_size, drop_last)
        self.examples, self.shuffle, self.seed = examples, shuffle, seed
        self.process, self.processes, self.epoch = process, processes, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(self.examples)
        if self.shuffle:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch, "order"))
            order = torch.randperm(self.examples, generator=generator)
        for rows in order.split(self.batch_size)[: len(self)]:
            yield rows.tensor_split(self.processes)[self.process].tolist() or [-1 - int(rows[0])]


class Examples(Dataset[Batch]):
    """One large batch as a data set.

    Args:
        batch: its examples.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return self.batch.size

    def __getitem__(self, row: int) -> Batch:
        return self.batch[torch.tensor([row])]


class Rows(Dataset[dict[str, Any]]):
    """Rows of a data set as one :class:`Batch`, whose ``index`` is their numbers.

    Args:
        dataset: of dictionaries, of whatever ``collate`` takes, or :class:`Examples`.
        collate: items → dictionary of tensors, or Batch.
        columns: entries of dictionaries that are kept; None keeps all.
        likelihood: says whether whole numbers are its targets as they are.
        labels: names that the targets may have, the first of them that is there.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        columns: Collection[str] | None,
        likelihood: Likelihood,
        labels: Sequence[str] = LABELS,
    ) -> None:
        self.dataset, self.collate, self.columns, self.likelihood = dataset, collate, columns, likelihood
        self.labels = labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return ``batch``, and in ``count`` how many of its examples count."""
        numbers = [row if row >= 0 else -1 - row for row in rows]
        index = torch.tensor(numbers)
        if isinstance(self.dataset, Examples):
            batch = self.dataset.batch[index]
        else:
            found = self.collate([self._kept(self.dataset[number]) for number in numbers])
            batch = found if isinstance(found, Batch) else self._batch(found)
        _checks.check_size(batch, numbers)
        return {"batch": replace(batch, index=index), "count": 0 if rows[0] < 0 else len(rows)}

    def _kept(self, item: Any) -> Any:
        if self.columns is None or not isinstance(item, Mapping):
            return item
        return {name: value for name, value in item.items() if name in self.columns}

    def _batch(self, found: Any) -> Batch:
        """Return a collator's dictionary as a batch: its labels are targets, everything else the backbone's inputs."""
        _checks.check_collated(found)
        inputs = {name: value for name, value in found.items() if name not in self.labels}
        labels = next((found[name] for name in self.labels if name in found), None)
        return Batch(inputs, None if labels is None else self._targets(labels))

    def _targets(self, labels: Tensor) -> Tensor:
        """Return labels in the dtype of the likelihood: collators make whole numbers of 0 and 1."""
        if labels.is_floating_point():
            return labels
        try:
            self.likelihood.accept(labels)
        except DataError:
            return labels.float()
        return labels


def columns_of(elbo: ELBO, labels: Collection[str] = LABELS) -> set[str] | None:
    """Return the entries of dictionaries that are read; None where the backbone takes any.

    They are the backbone's arguments, the inputs of the head alone, the mask of tokens, modalities that model or guide
    read, and ``labels``.
    """
    model = elbo.model
    if isinstance(model.backbone, nn.ModuleDict):
        return None
    own = inspect.signature(model.backbone.forward).parameters
    return {*own, *model.head.own_inputs, TOKEN_MASK, *model.reads, *elbo.guide.reads, *labels}


def as_they_are(found: Any) -> Any:
    """Return a batch that :class:`Rows` has made; what a loader calls to collate."""
    return found
