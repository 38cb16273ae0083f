"""The prior of a head's own sites, which stays as wide as their posterior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayes_adapters.priors import Prior

_HALF = (torch.bfloat16, torch.float16)


class HeadPrior(Prior):
    """A :class:`Prior` that follows its model to a device and into float64, but not into half precision.

    The posterior is the guide's and float32 there; of two dtypes torch computes no KL of correlated Gaussians.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HeadPrior:
        def wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in _HALF else moved

        super()._apply(wide, recurse)
        return self
