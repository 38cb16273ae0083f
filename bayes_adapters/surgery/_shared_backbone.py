"""A second backbone for a second set of adapters, in the memory of the first."""

from __future__ import annotations

import copy as copying
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bayes_adapters.adapters.installation import adapted_layers, remove, swap
from bayes_adapters.inference.model import AdapterModel


def shared_copy(backbone: nn.Module) -> nn.Module:
    """Copy a backbone; frozen weights are new parameters in the same memory, so moving or casting one leaves the other.

    Parameters of a class of their own (quantised ones) are copied as they say themselves.
    """
    plain = [p for p in backbone.parameters() if type(p) is nn.Parameter and not p.requires_grad]
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in plain}
    return copying.deepcopy(backbone, shared)


@contextmanager
def free_backbone(model: AdapterModel, copy: bool) -> Iterator[nn.Module]:
    """Give the backbone without adapters; after an error the model's own has its old ones again."""
    if copy:
        yield remove(shared_copy(model.backbone))
        return
    old = adapted_layers(model.backbone)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield remove(model.backbone)
    except BaseException:
        swap(remove(model.backbone), [(layer.base_layer, layer) for layer in old.values()])
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        raise
