"""A stream of batches behind which transforms stand, as ``fit`` reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bayes_adapters.data.batch import Batch
from bayes_adapters.data.transforms import Transform
from bayes_adapters.errors import integer
from bayes_adapters.training import _data_checks
from bayes_adapters.training._random import epoch_seed


@dataclass(eq=False)
class Transformed:
    """Batches of ``source`` after ``transforms``; see :func:`transformed`."""

    source: Any
    transforms: tuple[Transform, ...]
    seed: int = 0
    epoch: int = field(default=0, init=False)
    depth: int = field(default=0, init=False)
    """How many streams of this kind are behind this one: each has noise of its own, though their seeds be equal."""

    def __post_init__(self) -> None:
        self.seed = integer("seed", self.seed)
        self.depth = self.source.depth + 1 if isinstance(self.source, Transformed) else 0
        _data_checks.check_transforms(self.source, self.transforms)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        purpose = "transforms" if self.depth == 0 else f"transforms {self.depth}"
        seen: set[str] = set()
        for number, batch in enumerate(self.source):
            seen.update(batch.context)
            seed = epoch_seed(self.seed, self.epoch, f"{purpose} of batch {number}")
            generator = torch.Generator().manual_seed(seed)
            for transform in self.transforms:
                batch = transform(batch, generator)
            yield batch
        _data_checks.require_any_of(self.transforms, seen)

    def described(self) -> dict[str, Any]:
        """Return what a run that is continued must share, besides what the source says of itself."""
        return {"seed": self.seed, "of": [_data_checks.ADDRESS.sub("", repr(t)) for t in self.transforms]}


def transformed(data: Iterable[Batch] | Batch, *transforms: Transform, seed: int = 0) -> Transformed:
    """Return a stream whose batches have gone through ``transforms``, in their order, anew in every epoch.

    What a batch becomes is a function of (seed, epoch, its number in the epoch): a run that is stopped and continued
    sees the same batches, bitwise. Validation and test data are read without transforms.

    Args:
        data: as for :func:`bayes_adapters.training.fit`: a list of :class:`~bayes_adapters.data.batch.Batch`,
            :func:`~bayes_adapters.training.batches`, a DataLoader.
        *transforms: see :mod:`bayes_adapters.data.transforms`; any ``transform(batch, generator) → batch``. What
            ``repr`` says of them, addresses aside, must be the same for a run to be continued.
        seed: any integer.

    Raises:
        ConfigError: no transform, or one that cannot be called; at the end of an epoch, a transform of a modality that
            no batch of it had, while there were others. A batch may lack it.

    >>> from bayes_adapters import Frames
    >>> from bayes_adapters.data.transforms import FrameNoise, ModalityDropout
    >>> from bayes_adapters.training import batches
    >>> heard = Frames(torch.randn(8, 5, 3), torch.ones(8, 5, dtype=torch.bool))
    >>> data = Batch({"input_ids": torch.arange(16).reshape(8, 2)}, torch.zeros(8), {"audio": heard})
    >>> stream = transformed(batches(data, 4), FrameNoise("audio", (0, 20)), ModalityDropout("audio", 0.5))
    >>> [int(batch.context["audio"].present.sum()) for batch in stream]
    [2, 4]
    """
    return Transformed([data] if isinstance(data, Batch) else data, transforms, seed)
