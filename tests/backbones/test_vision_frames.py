"""Frames of pictures: what the encoder returns, at the layer asked for, with the encoder left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bayes_adapters import Batch, predict
from bayes_adapters.backbones import vision_frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import CrossAttention
from tests.helpers import WIDTH, bert, core_model, swin, token_batch, vit
from tests.instrument import unchecked
from tests.refusals import refuses


def pictures(size: int = 5) -> torch.Tensor:
    return torch.randn(size, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_frames_are_the_hidden_states_of_the_layer_asked_for() -> None:
    encoder, pixels = vit(), pictures()
    with torch.no_grad():
        output = encoder(pixel_values=pixels, output_hidden_states=True)
    last = output.last_hidden_state
    assert last.shape == (5, 5, WIDTH)  # four patches and the class token
    torch.testing.assert_close(vision_frames(encoder, pixels).values, last)
    torch.testing.assert_close(vision_frames(encoder, pixels, frames="first").values, last[:, :1])
    torch.testing.assert_close(vision_frames(encoder, pixels, frames="mean").values, last.mean(1, keepdim=True))
    for layer in range(3):
        found = vision_frames(encoder, pixels, layer=layer, batch_size=2)
        torch.testing.assert_close(found.values, output.hidden_states[layer])
        assert found.mask.all()
    assert not torch.allclose(output.hidden_states[1], last)


def test_the_encoder_is_in_eval_mode_for_the_call_alone_and_has_no_gradient() -> None:
    encoder = vit().train()
    encoder.encoder.eval() if hasattr(encoder, "encoder") else encoder.layernorm.eval()
    for part in encoder.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    modes = [part.training for part in encoder.modules()]
    first, again = vision_frames(encoder, pictures()), vision_frames(encoder, pictures())
    assert torch.equal(first.values, again.values)
    assert not first.values.requires_grad
    assert [part.training for part in encoder.modules()] == modes


def test_a_staged_encoder_and_a_map() -> None:
    assert vision_frames(swin(), pictures()).values.shape == (5, 16, WIDTH)

    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 8, 8)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return type("Output", (), {"last_hidden_state": self.conv(pixel_values)})()

    convolutional = Map()
    found = vision_frames(convolutional, pictures()).values
    assert found.shape == (5, 4, 4)
    with refuses(ConfigError, "Map", "'mean'"):
        vision_frames(convolutional, pictures(), frames="first")
    torch.testing.assert_close(found[:, 1], convolutional.conv(pictures())[:, :, 0, 1].detach())  # row by row


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pictures_are_cast_to_the_encoder(dtype: torch.dtype) -> None:
    found = vision_frames(swin().to(dtype), pictures()).values
    torch.testing.assert_close(found, vision_frames(swin(), pictures()).values, atol=0.1, rtol=0.1)


def test_they_condition_a_guide() -> None:
    model, plain = core_model(), token_batch()
    guide = CrossAttention(model, context_dim=WIDTH, dim=4, modality="image")
    batch = Batch(plain.inputs, plain.targets, {"image": vision_frames(vit(), pictures())})
    assert predict(model, guide, batch, num_samples=2).probs.shape == (5,)


def test_refusals() -> None:
    encoder = vit()
    for layer in (-1, 3, True):
        with refuses(ConfigError, "layer", 0, 2, layer):
            vision_frames(encoder, pictures(), layer=layer)
    for pixels in (pictures()[0], pictures()[:0]):
        with unchecked(), refuses(DataError, tuple(pixels.shape)):
            vision_frames(encoder, pixels)
    with unchecked(), refuses(DataError, "a list", "pixel_values"):
        vision_frames(encoder, [pictures()[0]])
    with refuses(ConfigError, "BertModel", "input_ids"):
        vision_frames(bert(1), pictures())
    with refuses(ConfigError, "frames", "'patch'"):
        vision_frames(encoder, pictures(), frames="patch")

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return type("Output", (), {"logits": pixel_values.flatten(1)})()

    with refuses(ConfigError, "Head", "last_hidden_state"):
        vision_frames(Head(), pictures())
    with pytest.raises(ConfigError):
        vision_frames(encoder, pictures(), batch_size=0)
