"""The two frozen encoders of the study, and what their lower blocks make of frames and sounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from bayes_adapters.backbones import SpeechEncoder
from examples.grounding.data import as_input
from examples.studies.halves import Above, below

_AT_ONCE = 128


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
