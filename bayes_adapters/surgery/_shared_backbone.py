"""A second backbone for a second set of adapters, in the memory of the first."""

from __future__ import annotations

import copy as copying
from typing import Any

from torch import nn


def shared_copy(backbone: nn.Module) -> nn.Module:
    """Copy a backbone; frozen weights are new parameters in the same memory, so moving or casting one leaves the other.

    Parameters of a class of their own (quantised ones) are copied as they say themselves.
    """
    plain = [p for p in backbone.parameters() if type(p) is nn.Parameter and not p.requires_grad]
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in plain}
    return copying.deepcopy(backbone, shared)
