"""Frames of context from a frozen vision encoder: one per patch, or one per picture."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.backbones._checks import require_layer
from bayes_adapters.backbones._vision_checks import require_maps, require_pictures, require_states
from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import choice, whole_number


class Pictured(StrEnum):
    """What of a picture becomes frames."""

    PATCHES = "patches"
    """Every position that the encoder returns, a class token at the front among them."""
    MEAN = "mean"
    """One frame: their mean."""
    FIRST = "first"
    """One frame: the first position, the class token of ViT, CLIP and DINO. Encoders without a class token, such as
    SigLIP and Swin, have a corner of the picture there: take the mean."""


@torch.no_grad()
def vision_frames(
    encoder: nn.Module,
    pixels: Float[Tensor, "B C H W"],
    *,
    frames: Pictured | str = Pictured.PATCHES,
    layer: int | None = None,
    batch_size: int = 32,
) -> Frames:
    """Encode pictures, without gradients and dropout; the encoder stays as it is.

    Args:
        encoder: a Hugging Face vision model without task head: ViT, DeiT, DINO, CLIP's or SigLIP's vision model, Swin,
            ConvNeXt. It is put into eval mode for the call.
        pixels: shape (B, C, H, W), floating point, as the model's image processor returns ``pixel_values``.
        frames: ``"patches"``, ``"mean"`` or ``"first"``, see :class:`Pictured`.
        layer: k, from 0 (embeddings) to the number of blocks: the k-th entry of the model's ``hidden_states``. These
            are not normalised: bring them to unit scale with :func:`bayes_adapters.data.frame_statistics`. None is the
            ``last_hidden_state``.
        batch_size: pictures encoded at once.

    Returns:
        Values (B, S, d), float32, on the encoder's device, all of them real; S is 1 for ``"mean"`` and ``"first"``. A
        convolutional network's map (B, d, h, w) gives S = h w, row by row.

    Raises:
        ConfigError: ``layer`` is out of range, the encoder is none of pictures or returns no hidden states, or
            ``"first"`` of a map.
        DataError: ``pixels`` are no (B, C, H, W) of numbers.

    >>> from transformers import ViTConfig, ViTModel
    >>> sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    >>> vit, pixels = ViTModel(ViTConfig(num_hidden_layers=2, **sizes)), torch.randn(3, 3, 16, 16)
    >>> vision_frames(vit, pixels).values.shape, vision_frames(vit, pixels, frames="mean", layer=1).values.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 1, 8]))
    """
    what = choice(Pictured, "frames", frames)
    whole_number("batch_size", batch_size)
    require_pictures(pixels, encoder)
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        values = torch.cat([_encoded(encoder, part, what, layer) for part in pixels.split(batch_size)]).float()
    finally:
        for module, training in modes:
            module.training = training
    return Frames(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


def _encoded(encoder: nn.Module, pixels: Tensor, what: Pictured, layer: int | None) -> Float[Tensor, "B S d"]:
    asked = {} if layer is None else {"output_hidden_states": True}
    output: Any = encoder(pixel_values=pixels.to(next(encoder.parameters())), **asked)
    states = _states(encoder, output, layer)
    require_maps(states, encoder, first=what is Pictured.FIRST)
    states = states.flatten(2).mT if states.dim() == 4 else states
    if what is Pictured.MEAN:
        return states.mean(1, keepdim=True)
    return states[:, :1] if what is Pictured.FIRST else states


def _states(encoder: nn.Module, output: Any, layer: int | None) -> Tensor:
    if layer is None:
        last: Tensor = require_states(encoder, getattr(output, "last_hidden_state", None), "last_hidden_state")
        return last
    states: tuple[Tensor, ...] = require_states(encoder, getattr(output, "hidden_states", None), "hidden_states")
    require_layer("layer", layer, len(states) - 1)
    return states[layer]
