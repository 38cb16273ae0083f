"""What is refused of a PEFT folder that holds weights of the backbone itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.errors import AdapterFileError, ConfigError


def not_written(folder: Path, names: Sequence[str]) -> AdapterFileError:
    """Build the error for weights of the backbone that nobody has allowed to be written."""
    return AdapterFileError(
        f"{str(folder)!r} holds {len(names)} trained weights of the backbone itself, for example {names[0]!r} (bias=, "
        "lora_bias, modules_to_save or trainable_token_indices of PEFT): here the backbone is frozen, and this one "
        "has other values. from_peft(…, write_backbone=True) writes them into it; it is then another base, to be saved "
        "with backbone.save_pretrained and loaded again beside the adapter."
    )


def require_bias(folder: Path, name: str, backbone: nn.Module) -> None:
    """Raise :class:`AdapterFileError` unless the backbone has the bias ``name`` that lora_bias is added to."""
    if name not in dict(backbone.named_parameters(remove_duplicate=False)):
        raise AdapterFileError(
            f"{str(folder)!r} was trained with lora_bias=True, and the backbone has no {name!r} to add its bias to. "
            "Train it again without lora_bias."
        )


def require_unshifted(name: str, bias: Tensor, after: Tensor | None) -> None:
    """Raise :class:`ConfigError` where ``bias`` still is what a reading has made of it, ``after``."""
    if after is not None and torch.equal(after.to(bias.dtype), bias.detach().cpu()):
        raise ConfigError(
            f"The backbone's {name!r} holds the shift of a PEFT folder with lora_bias=True that was read before, and "
            "another one would be added to it. Load the backbone again, and read the folder onto that one."
        )


def require_own_tensor(folder: Path, name: str, backbone: nn.Module) -> None:
    """Raise :class:`AdapterFileError` unless the backbone has ``name``, a tensor of floats shared with nothing."""
    tensors = dict(backbone.named_parameters(remove_duplicate=False)) | dict(backbone.named_buffers())
    if name not in tensors:
        raise AdapterFileError(
            f"{str(folder)!r} holds {name!r}, which this {type(backbone).__name__} does not have. Load the backbone "
            "that the adapters were trained on."
        )
    shared = [other for other, tensor in tensors.items() if tensor is tensors[name] and other != name]
    if shared or not tensors[name].is_floating_point():
        why = f"shares its tensor with {shared[0]!r}, which PEFT has left as it was" if shared else "holds no floats"
        raise AdapterFileError(
            f"{str(folder)!r} has trained {name!r}, which in this {type(backbone).__name__} {why}. Untie the two, or "
            "load the backbone in full precision."
        )


def require_same_shape(folder: Path, name: str, value: Tensor, backbone: nn.Module) -> None:
    """Raise :class:`AdapterFileError` unless the backbone's tensor ``name`` has the shape of ``value``."""
    tensors = dict(backbone.named_parameters(remove_duplicate=False)) | dict(backbone.named_buffers())
    if tensors[name].shape != value.shape or not value.is_floating_point():
        raise AdapterFileError(
            f"{name!r} in {str(folder)!r} is {value.dtype} of shape {tuple(value.shape)}; the backbone's has "
            f"{tuple(tensors[name].shape)}. Load the backbone the adapters were trained on, with its embeddings "
            "resized as they were."
        )


def require_token_rows(folder: Path, name: str, numbers: Any, value: Tensor, backbone: nn.Module) -> Tensor:
    """Return row numbers (n,) of the embedding ``name``; raise :class:`AdapterFileError` unless they fit ``value``."""
    weight = dict(backbone.named_parameters(remove_duplicate=False)).get(name)
    size = 0 if weight is None else len(weight)
    whole = isinstance(numbers, list) and all(type(number) is int and 0 <= number < size for number in numbers)
    if not whole or weight is None or tuple(value.shape) != (len(numbers), weight.shape[1]):
        raise AdapterFileError(
            f"{str(folder)!r} has rows of shape {tuple(value.shape)} for {name!r}, of "
            f"{'no shape' if weight is None else tuple(weight.shape)} here, and trainable_token_indices="
            f"{str(numbers)[:80]} for them: one row for each number below {size} is needed. Copy the adapter again, or "
            "load the backbone with its embeddings resized as they were."
        )
    return torch.tensor(numbers)
