"""What several processes must have in common to train one model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data.distributed import DistributedSampler

from bayes_adapters.errors import ConfigError, DataError


def require_group() -> None:
    """Raise :class:`ConfigError` where a launcher has started several processes, and nobody has joined them."""
    group = torch.distributed
    if group.is_available() and group.is_initialized():
        return
    world = os.environ.get("WORLD_SIZE", "1")
    if world.isdecimal() and int(world) > 1:
        raise ConfigError(
            f"This is one of {world} processes (torchrun, WORLD_SIZE={world}), which do not know each other: each "
            "would train weights of its own. Call torch.distributed.init_process_group() before fit, with 'gloo' on "
            "CPUs and 'nccl' on GPUs, in every process; or start one process, without torchrun."
        )


def check_samplers(parts: Iterable[Any], together: bool) -> None:
    """Raise :class:`ConfigError` for data that give each of several processes another share: ``fit`` shares itself."""
    if together and any(isinstance(part, DistributedSampler) for part in parts):
        raise ConfigError(
            "The DataLoader has a DistributedSampler, and fit itself shares every batch among the processes: examples "
            "would be left out. Give every process the same data, without that sampler; batch_size is then that of all "
            "processes together."
        )


def check_whole(tensors: Mapping[str, object]) -> None:
    """Raise :class:`ConfigError` for trained tensors that are shards, as those of FSDP are."""
    shards = [name for name, value in tensors.items() if hasattr(value, "full_tensor")]
    if shards:
        raise ConfigError(
            f"fit trains whole tensors, and {shards[0]!r} is a shard. Leave the backbone whole: adapters are small, "
            "and every process keeps them; or shard it, and write the loop by hand, as on the page about torchrun."
        )


def check_start(known: Sequence[Sequence[int]]) -> None:
    """Raise :class:`ConfigError` unless all processes have one backbone and continue after one step."""
    if len({backbone for backbone, _ in known}) > 1:
        raise ConfigError(
            f"The frozen backbones of the {len(known)} processes differ, and so would their models. Load the same "
            "checkpoint in each; of random weights call torch.manual_seed(…) with one seed before they are made."
        )
    steps = [step for _, step in known]
    if len(set(steps)) > 1:
        raise ConfigError(
            f"The {len(known)} processes would continue after different steps: {steps}. They must read one checkpoint: "
            "give a folder on a disk that all of them see."
        )


def check_batches(known: Sequence[Sequence[int]]) -> None:
    """Raise :class:`DataError` unless all processes have read the same batches."""
    if any(other != known[0] for other in known):
        raise DataError(
            f"The {len(known)} processes have read different batches ({[size for size, _ in known]} examples), and "
            "each computes only its part of them. Give every process the same data in the same order: one seed for "
            "batches(…, seed=…), no share of the data, no order drawn from a generator that is seeded by the rank."
        )


def check_names(known: Sequence[Sequence[int]], log: Iterable[str]) -> None:
    """Raise :class:`ConfigError` unless the processes' logs have the same names."""
    if any(other != known[0] for other in known):
        raise ConfigError(
            f"The processes logged different metrics; here: {', '.join(log)}. evaluate= must return the same names in "
            "every process."
        )
