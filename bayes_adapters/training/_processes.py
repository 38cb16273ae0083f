"""The processes that train one model together: torchrun's, or whoever else made a process group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch
from bayes_adapters.training import _process_checks
from bayes_adapters.training._state import copy_into


class Processes:
    """This process and the others of the group; alone without one.

    Every process reads the same batches. Of each, process p of P computes the p-th part, and the gradients of all parts
    are added. With B_ip examples in the part of batch i that is process p's, the sum is that of a step of one process::

        Σ_p Σ_i (B_ip / Σ_j B_j) · ∇ loss_ip  =  Σ_i (B_i / Σ_j B_j) · ∇ loss_i

    since a loss is nats per datum, its KL per data set included: that is counted once, however uneven the parts are.
    Noise is keyed (:class:`bayes_adapters.inference.step_noise.StepNoise`) wherever there is a group, of one process
    too.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        group = torch.distributed
        self.device = device
        self.together = group.is_available() and group.is_initialized()
        self.count, self.number = (group.get_world_size(), group.get_rank()) if self.together else (1, 0)

    @property
    def first(self) -> bool:
        """Whether this process is the one that reports and writes."""
        return self.number == 0

    def start(self, tensors: Mapping[str, Tensor], backbone: str, step: int) -> None:
        """Wait for all processes; give all of them the first one's tensors.

        Raises:
            ConfigError: a tensor is a shard; their frozen backbones differ, or the steps that they continue after.
        """
        _process_checks.check_whole(tensors)
        if self.together:
            known = self._all([int(backbone, 16) >> 1, step])
            _process_checks.check_start(known)
            for name in sorted(tensors):
                value = tensors[name].detach().contiguous()
                torch.distributed.broadcast(value, 0)
                copy_into({name: tensors[name]}, {name: value})

    def check_same(self, group: Sequence[Batch]) -> None:
        """Raise :class:`DataError`, in every process, unless all of them have read the same batches."""
        if self.together:
            known = [sum(batch.size for batch in group), 0]
            for batch in group:
                place = torch.arange(1.0, batch.size + 1.0, dtype=torch.float64)
                for value in batch.inputs.values():
                    rows = value.detach().double().nan_to_num().reshape(batch.size, -1).sum(1).cpu()
                    known[1] += int((rows * place).sum() * 1e3) % 2**40
            _process_checks.check_batches(self._all(known))

    def parts(self, group: Sequence[Batch]) -> list[Batch]:
        """Return this process's part of each batch, without the empty ones; alone, the batches themselves.

        Without ``index`` a step's examples are numbered in their order, so that each has noise of its own.
        """
        if not self.together:
            return list(group)
        parts, before = [], 0
        for batch in group:
            ids = batch.ids + before if batch.index is None else batch.ids
            rows = torch.arange(batch.size, device=ids.device).tensor_split(self.count)[self.number]
            if len(rows):
                parts.append(replace(batch, index=ids)[rows])
            before += batch.size
        return parts

    def dealt(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield every P-th batch, its examples numbered as in the whole stream; read the stream to its end."""
        before = 0
        for i, batch in enumerate(batches):
            ids = batch.ids + before if batch.index is None else batch.ids
            before += batch.size
            if i % self.count == self.number:
                yield replace(batch, index=ids)

    def add(self, parameters: Iterable[nn.Parameter], sums: Sequence[Tensor | float]) -> list[Tensor]:
        """Add gradients over the processes, in place, and return the sums of ``sums``, scalars.

        A parameter without gradient in any process keeps none: an optimiser leaves it where it is.
        """
        scalars = [torch.as_tensor(value, device=self.device).float() for value in sums]
        if not self.together:
            return scalars
        trained = list(parameters)
        has = torch.tensor([float(p.grad is not None) for p in trained], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([torch.stack(scalars), has, *[g.flatten().to(scalars[0]) for g in gradients]])
        torch.distributed.all_reduce(flat)
        found, known, rest = flat.split([len(scalars), len(trained), len(flat) - len(scalars) - len(trained)])
        pieces = rest.split([p.numel() for p in trained])
        for p, whole, count in zip(trained, pieces, known.tolist(), strict=True):
            p.grad = whole.reshape(p.shape).to(p) if count else None
        return list(found)

    def total(self, *values: float) -> list[float]:
        """Return the sums of numbers over the processes."""
        sums = torch.tensor(values, dtype=torch.float64)
        return self._moved(sums, torch.distributed.all_reduce).tolist() if self.together else sums.tolist()

    def agreed(self, log: Mapping[str, float]) -> dict[str, float]:
        """Return the first process's numbers, by which all decide alike.

        Raises:
            ConfigError: the names differ.
        """
        if not self.together:
            return dict(log)
        _process_checks.check_names(self._all([len(log), sum(map(len, log))]), log)
        values = torch.tensor(list(log.values()), dtype=torch.float64)
        return dict(zip(log, self._moved(values, lambda t: torch.distributed.broadcast(t, 0)).tolist(), strict=True))

    def _moved(self, values: Tensor, collective: Callable[[Tensor], Any]) -> Tensor:
        """Apply a collective, on the device that the group's backend serves."""
        moved = values.to(self.device)
        collective(moved)
        return moved.cpu()

    def _all(self, own: list[int]) -> list[list[int]]:
        """Return the whole numbers that each process has given."""
        mine = torch.tensor(own, dtype=torch.int64, device=self.device)
        found = [torch.empty_like(mine) for _ in range(self.count)]
        torch.distributed.all_gather(found, mine)
        return [numbers.tolist() for numbers in found]
