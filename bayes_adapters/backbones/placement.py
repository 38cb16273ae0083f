"""Where a backbone's tensors are, and where new ones go."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayes_adapters.errors import ConfigError


def require_loaded(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` where a part of ``backbone`` has no numbers, as an offloaded layer between passes.

    A backbone that is on the meta device as a whole may be adapted, to count parameters, say, unless accelerate's hooks
    show that its numbers are elsewhere. Hooks that move activations only, between blocks on several devices, are none
    of this function's business.
    """
    where = {name: p.is_meta for name, p in backbone.named_parameters()}
    empty = [name for name, meta in where.items() if meta]
    hooked = getattr(backbone, "hf_device_map", None) or any(_offloads(module) for module in backbone.modules())
    if empty and (len(empty) < len(where) or hooked):
        raise ConfigError(
            f"{len(empty)} of the backbone's {len(where)} tensors, such as {empty[0]!r}, are offloaded (a device_map "
            "with 'cpu' or 'disk', or accelerate's cpu_offload and disk_offload) and have no numbers while nothing "
            "runs, so no adapter can train beside them, and nobody could tell later which base it was trained on. Load "
            "the backbone with a device_map of GPUs only, in a smaller dtype or quantised, or with none."
        )


def _offloads(module: nn.Module) -> bool:
    """Whether a hook of accelerate takes this module's parameters away after each of its passes."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", [hook]))


def place_beside(backbone: nn.Module, *modules: nn.Module) -> None:
    """Move ``modules`` to the device of the backbone's first parameter, where inputs go; the backbone stays.

    Whole backbones are not moved: one that is split over several GPUs would be gathered on the first.
    """
    first = next(backbone.parameters(), torch.empty(0))
    for module in modules:
        module.to(first.device)


def in_dtype_of(backbone: nn.Module, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return ``inputs`` with floating-point ones in the dtype of the backbone's weights, if these have one dtype.

    A feature extractor makes float32 features, which the first layer of a bfloat16 backbone would refuse. Adapters have
    a dtype of their own and are not asked.

    >>> net = nn.Linear(2, 2).bfloat16()
    >>> in_dtype_of(net, {"pixels": torch.ones(1, 2), "ids": torch.ones(1, 2).long()})["pixels"].dtype
    torch.bfloat16
    """
    if not any(value.is_floating_point() for value in inputs.values()):
        return inputs
    named = ((name.rpartition(".")[2], p.dtype) for name, p in backbone.named_parameters() if p.is_floating_point())
    dtypes = {dtype for name, dtype in named if not name.startswith("lora_")}
    if len(dtypes) != 1:
        return inputs
    dtype = dtypes.pop()
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
