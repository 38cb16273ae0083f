"""The learning rate of the studies: it rises in the first steps, then declines along a line; all methods alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LAST = 0.05
"""Share of the learning rate below which it does not fall."""


def factor(step: int, *, steps: int, warm: int) -> float:
    """Return ``min(1, (t + 1) / warm) · max(0.05, 1 − t / steps)`` of step t = 0, 1, ….

    >>> [round(factor(step, steps=10, warm=2), 2) for step in (0, 1, 5, 9, 10)]
    [0.5, 0.9, 0.5, 0.1, 0.05]
    """
    return min(1.0, (step + 1) / warm) * max(LAST, 1 - step / steps)


def rise_and_decline(steps: int, warm: int = 30) -> Callable[[Optimizer], LambdaLR]:
    """Return the ``scheduler`` of :func:`bayes_adapters.training.fit`.

    Args:
        steps: of the whole training.
        warm: of them, in which it rises.
    """
    return partial(LambdaLR, lr_lambda=partial(factor, steps=steps, warm=warm))
