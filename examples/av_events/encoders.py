"""The two frozen encoders, and batches as they take them."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor, nn

from bayes_adapters.backbones import SpeechEncoder, speech_encoder
from examples.av_events.events import Clips
from examples.av_events.pretrain import vision_encoder
from examples.av_events.sounding import Sounding
from examples.grounding.data import as_input


def encoders() -> tuple[dict[str, nn.Module], SpeechEncoder]:
    """Return ``{"vision": transformer, "audio": Whisper's encoder}``, frozen, and what makes log-mel features.

    Four layers each, of widths 128 and 384; 65 tokens per frame (a class token and 8 x 8 patches of 8 pixels) and 50
    per second of sound.

    Raises:
        MissingResourceError: something is neither here nor reachable.
    """
    speech = speech_encoder(max_seconds=1.0)
    return {"vision": vision_encoder(), "audio": speech.encoder}, speech


def inputs(data: Clips | Sounding, rows: Int[Tensor, " B"], speech: SpeechEncoder) -> dict[str, Tensor]:
    """Return the inputs of a model with the encoders ``vision`` and ``audio`` for the examples at ``rows``.

    A clip's ten segments are ten rows, one after the other: R = 10 B; a sounding scene is one: R = B.

    Args:
        data: any split's.
        rows: shape (B,), int64.
        speech: as :func:`encoders` returns it.

    Returns:
        ``vision.pixel_values`` (R, 3, 64, 64), float32, -1 to 1; ``audio.input_features`` (R, 80, 100), log-mel.
    """
    frames, waves = data.frames[rows], data.sounds.waves(rows)
    seconds = list(waves.reshape(-1, waves.shape[-1]))
    return {
        "vision.pixel_values": as_input(frames.reshape(-1, *frames.shape[-3:])),
        "audio.input_features": speech.mel(seconds),
    }
