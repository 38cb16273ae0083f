"""What a backbone's layers compute with besides their tensors: a norm's ε, an activation, the number of heads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from torch import nn

_TRAINING = {"training", "p", "momentum", "inplace", "track_running_stats", "sparse", "scale_grad_by_freq", "dropout"}
_OF_A_RUN = {"compute_dtype", "compute_type_is_set", "quant_state", "support_avx512bf16_for_cpu"}
"""What a 4-bit layer of bitsandbytes says of passes that it has seen, and of the machine."""


def structure(plain: nn.Module, base_name: Callable[[str], str | None]) -> str:
    """Return a hash of the options of torch's own layers and of the classes of transformers' activations.

    A configuration says most of this too, but not every backbone has one, and a layer can be changed after it was
    built. Layers of other classes are not looked at: their attributes may count calls or hold caches. Nor are options
    that act in training only. Another version of torch or transformers may say the same in another way, so hashes of
    one version are compared.

    Args:
        plain: the backbone without wrappers.
        base_name: gives a tensor's name without adapters, or None for a tensor of theirs.
    """
    lines = []
    for path, module in plain.named_modules():
        name = base_name(f"{path}.weight" if path else "weight")
        if name is not None:
            found = _options(module, name)
            if found is not None:
                lines.append([name.rpartition(".")[0], *found])
    return hashlib.sha256(json.dumps(sorted(lines), sort_keys=True).encode()).hexdigest()


def _options(module: nn.Module, name: str) -> tuple[str, dict[str, Any]] | None:
    """A layer's class and options; None for containers, dropout and classes of others."""
    own = type(module)
    if own.__module__ == "transformers.activations":
        return own.__name__, {}
    kind = next(cls for cls in own.__mro__ if cls.__module__.startswith("torch.nn."))
    if kind.__module__ in {"torch.nn.modules.module", "torch.nn.modules.container"} or "Drop" in kind.__name__:
        return None
    options: dict[str, Any] = {}
    left = _TRAINING | _OF_A_RUN | ({"forward"} if hasattr(module, "_hf_hook") else set())  # accelerate's own
    for key, value in sorted(vars(module).items()):
        if key.startswith("_") or key in left or (key == "padding_idx" and "position" not in name):
            continue  # padding_idx: no gradient for that row; RoBERTa counts positions from it, too
        if callable(value):
            options[key] = getattr(value, "__name__", type(value).__name__)
        elif _is_plain(value):
            options[key] = value
    return kind.__name__, options


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)
