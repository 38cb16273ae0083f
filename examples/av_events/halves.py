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
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from bayes_adapters.backbones import SpeechEncoder
from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.blocks import describe_blocks
from examples.grounding.data import as_input

_AT_ONCE = 128


class Above(nn.Module):
    """The uppermost blocks of an encoder, and its last norm, as an encoder whose input is what the lower blocks return.

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
        given = inspect.signature(self.layers[0].forward).parameters
        self._options: dict[str, Any] = {"attention_mask": None} if "attention_mask" in given else {}

    def forward(self, states: Float[Tensor, "rows n d"]) -> BaseModelOutput:
        for layer in self.layers:
            found = layer(states, **self._options)
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


@dataclass(frozen=True, eq=False)
class Nets:
    """The two frozen encoders, whole.

    Args:
        vision: takes ``pixel_values`` (R, 3, 64, 64), -1 to 1.
        speech: Whisper's encoder, with its log-mel features.
    """

    vision: nn.Module
    speech: SpeechEncoder

    def above(self, blocks: int) -> dict[str, nn.Module]:
        """Return the upper halves, which are adapted, as ``vision`` and ``audio``."""
        return {"vision": Above(self.vision, blocks), "audio": Above(self.speech.encoder, blocks)}

    def see(self, frames: UInt8[Tensor, "N *T 3 64 64"], blocks: int) -> Float[Tensor, "N *T n d"]:
        """Return the states of frames below the upper blocks, float32."""
        flat = frames.flatten(0, -4).split(_AT_ONCE)
        states = torch.cat([below(self.vision, blocks, pixel_values=as_input(some)) for some in flat])
        return states.unflatten(0, frames.shape[:-3])

    def hear(self, waves: Float[Tensor, "N *T window"], blocks: int) -> Float[Tensor, "N *T n d"]:
        """Return the states of sounds below the upper blocks, float32."""
        mels = (self.speech.mel(list(some)) for some in waves.flatten(0, -2).split(_AT_ONCE))
        states = torch.cat([below(self.speech.encoder, blocks, input_features=mel) for mel in mels])
        return states.unflatten(0, waves.shape[:-1])
