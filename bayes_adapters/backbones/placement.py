"""Where a backbone's tensors are, and where new ones go."""

from __future__ import annotations

import torch
from torch import nn

from bayes_adapters.errors import ConfigError


def require_loaded(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` where a part of ``backbone`` has no numbers, as an offloaded layer between passes.

    A backbone that is on the meta device as a whole may be adapted, to count parameters, say.
    """
    where = {name: p.is_meta for name, p in backbone.named_parameters()}
    empty = [name for name, meta in where.items() if meta]
    if empty and (len(empty) < len(where) or getattr(backbone, "hf_device_map", None)):
        raise ConfigError(
            f"{len(empty)} of the backbone's {len(where)} tensors, such as {empty[0]!r}, are offloaded (device_map= of "
            "from_pretrained put them on 'cpu' or 'disk') and have no numbers while nothing runs, so no adapter can "
            "train beside them. Load it with a device_map of GPUs only, in a smaller dtype or quantised, or with none."
        )


def place_beside(backbone: nn.Module, *modules: nn.Module) -> None:
    """Move ``modules`` to the device of the backbone's first parameter, where inputs go; the backbone stays.

    Whole backbones are not moved: one that is split over several GPUs would be gathered on the first.
    """
    first = next(backbone.parameters(), torch.empty(0))
    for module in modules:
        module.to(first.device)
