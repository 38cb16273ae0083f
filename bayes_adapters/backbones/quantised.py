"""Backbones of 8 and 4 bits: which weights are matrices of numbers, and kernels that would change or end something."""

from __future__ import annotations

from torch import Tensor, nn

from bayes_adapters.errors import ConfigError

_REPACKS = "support_avx512bf16_for_cpu"
"""bitsandbytes' switch of a 4-bit layer: whether its first pass without gradients on a CPU repacks the weight."""


def plain_weight(layer: nn.Module) -> Tensor | None:
    """Return the layer's weight where it is a tensor of floating-point numbers, else None.

    None for whole numbers (bitsandbytes), for classes that stand for another matrix (torchao: their dtype is float32
    and they hold int8), and where a parametrisation computes the weight from others.

    >>> plain_weight(nn.Linear(2, 3)).shape, plain_weight(nn.ReLU())
    (torch.Size([3, 2]), None)
    """
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    own = weight is not None and type(weight).__torch_dispatch__ is Tensor.__torch_dispatch__
    return weight if own and weight is not None and weight.is_floating_point() else None


def is_repacked(layer: nn.Module) -> bool:
    """Whether bitsandbytes has repacked this 4-bit layer's weight for a CPU: its bytes and its scales are others."""
    state = getattr(layer._parameters.get("weight"), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def require_unpacked(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` where a 4-bit layer was repacked before the model was built."""
    found = [path for path, layer in backbone.named_modules() if is_repacked(layer)]
    if found:
        raise ConfigError(
            f"{len(found)} 4-bit layers of the backbone, such as {found[0]!r}, have run on this CPU without gradients. "
            "bitsandbytes then repacks a weight: its scales are rounded to bfloat16 for good, and no gradient passes "
            "the layer any more. Load the backbone again, and build the model before anything else runs on it."
        )


def keep_gradients(backbone: nn.Module) -> None:
    """Switch off, in the 4-bit layers of ``backbone``, what bitsandbytes does in a pass without gradients on a CPU.

    On CPUs with AVX512-BF16 it repacks a weight for another kernel, in place. The frozen weight is then rounded, has
    other bytes, and hands on no gradient. The layers' own switch keeps the kernel of training; others have none.
    """
    for layer in backbone.modules():
        if hasattr(layer, _REPACKS):
            setattr(layer, _REPACKS, False)
