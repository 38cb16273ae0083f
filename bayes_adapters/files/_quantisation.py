"""What quantised layers compute with besides parameters and buffers: scales, code books, a threshold for outliers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayes_adapters.backbones.quantised import require_unpacked


def quantisation(plain: nn.Module, base_name: Callable[[str], str | None]) -> str:
    """Return a hash of names, dtypes, shapes and bytes of what quantised layers keep beside their tensors; "" of none.

    bitsandbytes keeps the scales of rows and blocks on attributes and writes them by ``state_dict`` only. Twice a
    weight has the same codes and other scales. Of ``Linear8bitLt`` the threshold counts too, above which an activation
    is multiplied in full precision.

    Args:
        plain: the backbone without wrappers.
        base_name: gives a tensor's name without adapters, or None for a tensor of theirs.

    Raises:
        ConfigError: a 4-bit layer was repacked for a CPU, so that its scales are no longer those of the backbone.
    """
    require_unpacked(plain)
    digests: dict[str, bytes] = {}
    for path, module in plain.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.Linear) or type(module)._save_to_state_dict is nn.Module._save_to_state_dict:
            continue
        for key, value in _beside(module).items():
            name = base_name(f"{path}.{key}" if path else key)
            if name is not None:
                digests[name] = _bytes(value)
    digest = hashlib.sha256()
    for name, each in sorted(digests.items()):
        digest.update(f"{name}\0".encode() + each)
    return digest.hexdigest() if digests else ""


def _beside(module: nn.Module) -> dict[str, Tensor]:
    """What a layer saves besides parameters and buffers, and its threshold."""
    known = {*module._parameters, *module._buffers}
    found = {k: v for k, v in module.state_dict().items() if k not in known and isinstance(v, Tensor)}
    threshold = getattr(getattr(module, "state", None), "threshold", None)
    if isinstance(threshold, float):
        found["threshold"] = torch.tensor(threshold)
    return found


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{value.dtype} {tuple(value.shape)}\0".encode() + hashlib.sha256(flat.numpy().data).digest()
