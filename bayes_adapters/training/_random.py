"""The random generators of a run: seeded for each epoch, and given back to the caller as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def epoch_seed(seed: int, epoch: int, purpose: str = "noise") -> int:
    """Return a seed in [0, 2^63) that is a function of its arguments; different purposes give unrelated streams.

    >>> first = epoch_seed(0, 1)
    >>> first == epoch_seed(0, 1), first == epoch_seed(1, 0), first == epoch_seed(0, 1, "order")
    (True, False, False)
    """
    digest = hashlib.sha256(f"{purpose}:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Generators:
    """Torch's global CPU generator, those of the CUDA devices in use, and those of the data loader.

    Args:
        devices: where the model's tensors are.
        others: generators that the data hold themselves.
    """

    def __init__(self, devices: Iterable[torch.device], others: Sequence[torch.Generator] = ()) -> None:
        self._all: list[torch.Generator] = [torch.default_generator]
        indices = {d.index or 0 for d in devices if d.type == "cuda"}
        self._all += [torch.cuda.default_generators[i] for i in sorted(indices)]
        self._all += [g for i, g in enumerate(others) if all(g is not other for other in others[:i])]

    def seed(self, seed: int, epoch: int) -> None:
        """Seed every generator for ``epoch``."""
        for generator in self._all:
            generator.manual_seed(epoch_seed(seed, epoch))

    def get(self) -> list[Tensor]:
        """Return every generator's state, uint8 on the CPU."""
        return [generator.get_state() for generator in self._all]

    def set(self, states: Sequence[Tensor]) -> None:
        """Set the states :meth:`get` returned; on another set of devices as many as fit, the CPU's first."""
        for generator, state in zip(self._all, states, strict=False):
            if generator.get_state().shape == state.shape:
                generator.set_state(state)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Within the context the generators may be used and seeded; after it they have the state they had before."""
        before = self.get()
        try:
            yield
        finally:
            self.set(before)
