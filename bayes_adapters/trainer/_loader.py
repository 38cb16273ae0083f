"""Arguments and data sets as they are given, and the loader of a Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import missing_package
from bayes_adapters.trainer import _checks
from bayes_adapters.trainer._rows import Examples, Parts, Rows, as_they_are


def arguments(args: Any) -> Any:
    """Return the arguments; None stands for the Trainer's defaults.

    Raises:
        MissingResourceError: accelerate is not installed.
    """
    try:
        return TrainingArguments("tmp_trainer") if args is None else args
    except ImportError as error:
        raise missing_package("BayesTrainer", "accelerate", "trainer") from error


def sized(name: str, dataset: Any) -> Any:
    """Return the data set called ``name``, a :class:`Batch` as one; None, and the name of a data set, stay."""
    if dataset is None or isinstance(dataset, str):
        return dataset
    dataset = Examples(dataset) if isinstance(dataset, Batch) else dataset
    _checks.check_data_set(name, dataset)
    return dataset


def loader(rows: Rows, args: Any, batch_size: int, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
    """Return the loader of this process's part of ``rows``.

    Args:
        rows: of a data set.
        args: ``TrainingArguments``.
        batch_size: of each process.
        shuffle: whether the order is drawn, by ``data_seed`` or ``seed``.
        drop_last: whether a smaller last batch is left out.
    """
    parts = Parts(
        len(rows),
        batch_size * args.world_size,
        shuffle=shuffle,
        seed=args.seed if args.data_seed is None else args.data_seed,
        drop_last=drop_last,
        process=args.process_index,
        processes=args.world_size,
    )
    return DataLoader(
        rows,
        batch_sampler=parts,
        collate_fn=as_they_are,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor if args.dataloader_num_workers else None,
        generator=torch.Generator().manual_seed(args.seed),  # else a loader draws from the noise of training
    )
