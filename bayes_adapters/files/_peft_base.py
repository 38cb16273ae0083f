"""Weights of the backbone itself that PEFT has trained along with a LoRA: biases, whole modules, rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.files._peft_base_checks import (
    not_written,
    require_bias,
    require_own_tensor,
    require_same_shape,
    require_token_rows,
    require_unshifted,
)

_SHIFTED = "_shifted_bias"
"""Attribute of a layer: its bias as it was when a shift had been written into it."""
_BIAS, _TOKENS = ".lora_B.bias", ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class BaseWeights:
    """What of a folder belongs to the backbone.

    Args:
        whole: name of a parameter or buffer → its value.
        shifts: name of a bias → what the adapter adds to it, ``s b_B``.
        rows: name of an embedding → row numbers (n,), and their values (n, d).
    """

    whole: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The backbone's tensors that these change."""
        return sorted({*self.whole, *self.shifts, *self.rows})


def part(
    folder: Path,
    others: Mapping[str, Tensor],
    prefix: str,
    backbone: nn.Module,
    scales: Mapping[str, float],
    tokens: Any,
    wanted: bool,
) -> tuple[BaseWeights, dict[str, Tensor]]:
    """Return what of ``others`` is the backbone's, and the rest.

    Args:
        folder: for messages.
        others: name → tensor of everything that is no A or B.
        prefix: before the backbone's paths in these names.
        backbone: the plain one.
        scales: layer path → s.
        tokens: ``trainable_token_indices`` of the configuration: numbers, or name of an embedding → numbers.
        wanted: whether they may be written.

    Raises:
        AdapterFileError: there are such tensors and they are not ``wanted``, or do not fit the backbone.
    """
    found, rest = BaseWeights(), {}
    for name, value in others.items():
        path = name.removeprefix(prefix).replace(".base_layer.", ".") if name.startswith(prefix) else ""
        module = path.removesuffix(_BIAS).removesuffix(_TOKENS).rpartition(".")
        if path.endswith(_BIAS):
            own = f"{path.removesuffix(_BIAS)}.bias"
            require_bias(folder, own, backbone)
            found.shifts[own] = value.float() * scales[path.removesuffix(_BIAS)]
        elif path.endswith(_TOKENS):
            own = f"{path.removesuffix(_TOKENS)}.weight"
            numbers = tokens if isinstance(tokens, list) else _of(tokens, own)
            found.rows[own] = (require_token_rows(folder, own, numbers, value, backbone), value)
        elif path and (module[0] in {p for p, _ in backbone.named_modules() if p}):
            require_own_tensor(folder, path, backbone)
            found.whole[path] = value
        else:
            rest[name] = value
    if found.names and not wanted:
        raise not_written(folder, found.names)
    for name, value in [*found.whole.items(), *found.shifts.items()]:
        require_same_shape(folder, name, value, backbone)
    return found, rest


def _of(tokens: Any, own: str) -> Any:
    """The numbers for an embedding, by the end of its name."""
    entries = tokens.items() if isinstance(tokens, Mapping) else ()
    module = own.removesuffix(".weight")
    return next((numbers for key, numbers in entries if module == key or module.endswith(f".{key}")), None)


@contextmanager
def written(backbone: nn.Module, found: BaseWeights) -> Iterator[None]:
    """Write ``found`` into ``backbone``; after an error inside it holds what it held.

    Raises:
        ConfigError: a bias holds the shift of an earlier reading.
    """
    tensors = dict(backbone.named_parameters(remove_duplicate=False)) | dict(backbone.named_buffers())
    before = {name: tensors[name].detach().clone() for name in found.names}
    for name in found.shifts:
        require_unshifted(name, tensors[name], getattr(_layer(backbone, name), _SHIFTED, None))
    try:
        with torch.no_grad():
            for name, value in found.whole.items():
                tensors[name].copy_(value)
            for name, value in found.shifts.items():
                tensors[name].add_(value.to(tensors[name]))
            for name, (numbers, value) in found.rows.items():
                tensors[name][numbers.to(tensors[name].device)] = value.to(tensors[name])
        yield
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                tensors[name].copy_(value)
        raise
    for name in found.shifts:
        setattr(_layer(backbone, name), _SHIFTED, tensors[name].detach().cpu().clone())


def _layer(backbone: nn.Module, name: str) -> nn.Module:
    """The layer before adapters, whose tensor ``name`` is."""
    layer = backbone.get_submodule(name.rpartition(".")[0])
    return getattr(layer, "base_layer", layer)
