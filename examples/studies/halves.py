"""An encoder cut in two: its lower blocks stay as they are and run once, its upper ones are adapted.

>>> import torch
>>> from transformers import ViTConfig, ViTModel
>>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
>>> vit = ViTModel(ViTConfig(image_size=8, patch_size=4, **sizes), add_pooling_layer=False).eval()
>>> pixels = torch.randn(2, 3, 8, 8)
>>> states = below(vit, 2, pixel_values=pixels)
>>> torch.allclose(Above(vit, 2)(states).last_hidden_state, vit(pixels).last_hidden_state, atol=1e-6)
True
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.blocks import describe_blocks


class Above(nn.Module):
    """The uppermost blocks of an encoder, and its last norm, as an encoder whose input is what the lower blocks return.

    Whisper's blocks take an ``attention_mask`` (rows, n), 0 at padding, as its own encoder, of 30 s always, does not.

    Args:
        net: a ViT, or Whisper's encoder; it is not changed.
        blocks: how many.

    Raises:
        ConfigError: the encoder has fewer blocks, or no last norm by a name of these two.
    """

    def __init__(self, net: nn.Module, blocks: int) -> None:
        super().__init__()
        norm = getattr(net, "layernorm", getattr(net, "layer_norm", None))
        if not isinstance(norm, nn.Module):
            raise ConfigError(
                f"{type(net).__name__} has neither layernorm nor layer_norm, by which the last norm of a ViT and of "
                "Whisper's encoder are found. Take one of these."
            )
        self.config = net.config
        self.layers = nn.ModuleList([copy.deepcopy(net.get_submodule(path)) for path in _upper(net, blocks)])
        self.norm = copy.deepcopy(norm)
        self.masks = "attention_mask" in inspect.signature(self.layers[0].forward).parameters

    def forward(
        self, states: Float[Tensor, "rows n d"], attention_mask: Int[Tensor, "rows n"] | None = None
    ) -> BaseModelOutput:
        if attention_mask is not None and not self.masks:
            raise ConfigError(f"{type(self.layers[0]).__name__} attends to all its tokens and takes no attention_mask.")
        hidden = None
        if attention_mask is not None:  # what is added to the scores of every head and query
            hidden = torch.zeros_like(attention_mask, dtype=states.dtype)
            hidden = hidden.masked_fill(attention_mask == 0, torch.finfo(states.dtype).min)[:, None, None]
        options: dict[str, Any] = {"attention_mask": hidden} if self.masks else {}
        for layer in self.layers:
            found = layer(states, **options)
            states = found if isinstance(found, Tensor) else found[0]  # which one depends on transformers' version
        return BaseModelOutput(last_hidden_state=self.norm(states))


@torch.no_grad()
def below(net: nn.Module, blocks: int, **inputs: Tensor) -> Float[Tensor, "rows n d"]:
    """Return what the uppermost ``blocks`` of ``net`` would be given; they do not run.

    Args:
        net: an encoder.
        blocks: how many are above.
        **inputs: of the encoder.
    """
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(args[0] if args else named["hidden_states"])
        raise _ReachedError

    handle = net.get_submodule(_upper(net, blocks)[0]).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        net(**inputs)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0]


class _ReachedError(Exception):
    """The first upper block would run now."""


def _upper(net: nn.Module, blocks: int) -> list[str]:
    paths = [block.path for block in describe_blocks(net)]
    if not 1 <= blocks <= len(paths):
        raise ConfigError(f"blocks={blocks} must be at least 1 and at most the encoder's {len(paths)}.")
    return paths[-blocks:]
