"""What an encoder of pictures refuses."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayes_adapters.errors import ConfigError, DataError, described


def require_pictures(pixels: object, encoder: nn.Module) -> None:
    """Raise an error unless ``pixels`` are (B, C, H, W) of floating-point numbers, and the encoder takes such."""
    if not isinstance(pixels, Tensor):
        raise DataError(
            f"Pictures are one tensor of shape (B, C, H, W); got {described(pixels)}. The model's image processor "
            "makes it: processor(images, return_tensors='pt')['pixel_values']."
        )
    if (takes := getattr(encoder, "main_input_name", "pixel_values")) != "pixel_values":
        raise ConfigError(
            f"{type(encoder).__name__} takes {takes}, not pixel_values. Pass a vision encoder; of a model of texts and "
            "pictures, its vision_model."
        )
    if pixels.dim() != 4 or not pixels.is_floating_point() or not len(pixels):
        raise DataError(
            f"Pictures are floating-point numbers of shape (B, C, H, W); got {pixels.dtype} of {tuple(pixels.shape)}. "
            "The model's image processor makes them: processor(images, return_tensors='pt')['pixel_values']; one "
            "picture is pixels[None]."
        )


def require_states(encoder: nn.Module, states: Any, name: str) -> Any:
    """Return ``states``; raise :class:`ConfigError` if there are none."""
    if states is None:
        raise ConfigError(
            f"{type(encoder).__name__} returns no {name}. Pass the vision transformer without a task head, as "
            "AutoModel.from_pretrained(...) makes it, or the vision_model of a model of texts and pictures."
        )
    return states


def require_maps(states: Tensor, encoder: nn.Module, *, first: bool) -> None:
    """Raise :class:`ConfigError` unless hidden states are (B, S, d) or (B, d, h, w), which has no ``first``."""
    if first and states.dim() == 4:
        raise ConfigError(
            f"frames='first' takes the class token, and {type(encoder).__name__} returns a map, which has none. Take "
            "frames='mean' or 'patches'."
        )
    if states.dim() not in (3, 4):
        raise ConfigError(
            f"{type(encoder).__name__} returns hidden states of shape {tuple(states.shape)}; frames are made of "
            "(B, S, d) or of a map (B, d, h, w)."
        )
