"""The random generators of a run: seeded for each epoch, and given back to the caller as they were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
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
    """The global generators of torch (CPU and the CUDA devices in use), Python and numpy, and those of a data loader.

    Python's and numpy's are used by augmentation, and by backbones: wav2vec 2.0 draws its masks of time with numpy.

    Args:
        devices: where the model's tensors are.
        others: generators that the data hold themselves.
    """

    def __init__(self, devices: Iterable[torch.device], others: Sequence[torch.Generator] = ()) -> None:
        cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
        found = [torch.default_generator, *(torch.cuda.default_generators[i] for i in cuda), *others]
        self._torch = list({id(generator): generator for generator in found}.values())

    def seed(self, seed: int, epoch: int, whose: str = "") -> None:
        """Seed every generator for ``epoch``; ``whose`` tells streams apart."""
        for generator in self._torch:
            generator.manual_seed(epoch_seed(seed, epoch, f"noise{whose}"))
        random.seed(epoch_seed(seed, epoch, f"python{whose}"))
        np.random.seed(epoch_seed(seed, epoch, f"numpy{whose}") % 2**32)  # noqa: NPY002 (others draw from it)

    @contextmanager
    def of_part(self, seed: int, step: int, process: int, part: int) -> Iterator[None]:
        """Within the context the noise is that of a process's part of a step; after it the states are as before."""
        with self.borrowed():
            self.seed(seed, step, f" of part {part} in process {process}")
            yield

    def get(self) -> tuple[list[Tensor], dict[str, Any]]:
        """Return the states of torch's generators, uint8 on the CPU, and those of Python's and numpy's."""
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        numpy = (name, torch.from_numpy(np.asarray(keys, "int64")), *rest)
        return [g.get_state() for g in self._torch], {"python": random.getstate(), "numpy": numpy}

    def set(self, states: Sequence[Tensor], host: Mapping[str, Any]) -> None:
        """Set the states :meth:`get` returned; on another set of devices as many as fit, the CPU's first."""
        for generator, state in zip(self._torch, states, strict=False):
            if generator.get_state().shape == state.shape:
                generator.set_state(state)
        if host:
            random.setstate(host["python"])
            name, keys, *rest = host["numpy"]
            np.random.set_state((name, keys.numpy().astype("uint32"), *rest))  # noqa: NPY002

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Within the context the generators may be used and seeded; after it they have the state they had before."""
        before = self.get()
        try:
            yield
        finally:
            self.set(*before)
