"""A frozen Whisper encoder that turns recordings into frames of context."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.backbones._checks import (
    explained,
    require_layer,
    require_pool,
    require_pool_within,
    require_seconds,
    require_waves,
    require_whisper,
)
from bayes_adapters.backbones._torchaudio import settle_torchaudio
from bayes_adapters.backbones.pretrained import SPEECH_ENCODER, locate
from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import whole_number

SAMPLE_RATE = 16_000
"""Samples per second of every waveform that the encoder takes."""
_HOP = 320  # samples per encoder position: 160 per mel frame, then a stride of 2


def speech_encoder(
    name_or_folder: str | Path = SPEECH_ENCODER, max_seconds: float = 5.0, *, layer: int | None = None
) -> SpeechEncoder:
    """Load a frozen Whisper encoder that takes recordings of at most ``max_seconds``.

    Whisper pads every recording to 30 s. The first ``max_seconds`` of its position embedding are kept, so short
    recordings cost what they last; all other weights are unchanged.

    Args:
        name_or_folder: a hub name or a local folder in Hugging Face's layout.
        max_seconds: longest recording in seconds, above 0 and at most 30; rounded up to 0.02 s.
        layer: k, from 1 to the number of blocks L: frames are the output of the k-th block, and those above it are left
            out. They are not normalised, so bring them to unit scale with
            :func:`bayes_adapters.data.frame_statistics`. None is the last block's output after its layer norm. Which
            layer says most of a label is a matter of the label: words are in the upper ones, who speaks and how in
            lower ones.

    Returns:
        A callable that turns waveforms into :class:`~bayes_adapters.data.batch.Frames`.

    Raises:
        ConfigError: ``max_seconds`` or ``layer`` is out of range, or the model is no Whisper that transformers can
            build.
        MissingResourceError: the model, or a file of it, is neither local nor reachable.
    """
    settle_torchaudio()
    from transformers import AutoConfig, WhisperFeatureExtractor, WhisperModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = locate(name_or_folder)
    with explained(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    require_whisper(name_or_folder, config.model_type)
    require_seconds(max_seconds, config.max_source_positions * _HOP / SAMPLE_RATE)
    positions = math.ceil(round(max_seconds * SAMPLE_RATE / _HOP, 6))
    with explained(folder):
        state = WhisperModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).encoder.state_dict()
        extractor = WhisperFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    state["embed_positions.weight"] = state["embed_positions.weight"][:positions].clone()
    config = copy.deepcopy(config)
    config.max_source_positions = positions
    encoder = WhisperEncoder(config)
    encoder.load_state_dict(state, strict=True)
    if layer is not None:
        require_layer("layer", layer, len(encoder.layers), least=1)
        encoder.layers, encoder.layer_norm = encoder.layers[:layer], nn.Identity()
        config.encoder_layers = layer
    return SpeechEncoder(encoder.eval().requires_grad_(False), extractor)


@dataclass(frozen=True, eq=False)
class SpeechEncoder:
    """A frozen Whisper encoder with its log-mel features.

    Args:
        encoder: ``WhisperEncoder`` that takes 2·P mel frames and returns P positions, 50 per second.
        extractor: the ``WhisperFeatureExtractor`` that belongs to it.
    """

    encoder: nn.Module
    extractor: Any

    @property
    def positions(self) -> int:
        """P, the number of encoder positions; each is 320 samples, 0.02 s."""
        return int(self.encoder.config.max_source_positions)  # type: ignore[union-attr, arg-type]

    @property
    def max_seconds(self) -> float:
        """The longest recording, in seconds."""
        return self.positions * _HOP / SAMPLE_RATE

    @property
    def width(self) -> int:
        """d, the size of one frame."""
        return int(self.encoder.config.d_model)  # type: ignore[union-attr, arg-type]

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that change with any weight, with P and with the feature settings."""
        digest = hashlib.sha256(repr(sorted(self.extractor.to_dict().items(), key=lambda item: item[0])).encode())
        for name, value in self.encoder.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def mel(self, waves: Sequence[Float[Tensor, " _"]]) -> Float[Tensor, "B mels M"]:
        """Compute log-mel features, padded with silence to the encoder's length.

        Args:
            waves: B waveforms of shape (N,), float32, 16 kHz, each at most :attr:`max_seconds` long.

        Returns:
            Shape (B, mels, 2·P), float32, on the CPU.

        Raises:
            DataError: no waveform, or one that is empty, too long, or not of shape (N,).
        """
        limit = self.positions * _HOP
        require_waves(waves, limit, self.max_seconds, SAMPLE_RATE)
        features = self.extractor(
            [wave.numpy() for wave in waves],
            sampling_rate=SAMPLE_RATE,
            padding="max_length",
            max_length=limit,
            return_tensors="pt",
        )
        mel: Tensor = features["input_features"]
        return mel

    @torch.no_grad()
    def __call__(self, waves: Sequence[Float[Tensor, " _"]], *, pool: int = 1) -> Frames:
        """Encode recordings; frames past a recording's end are masked.

        Args:
            waves: B waveforms of shape (N,), float32, 16 kHz, each at most :attr:`max_seconds` long.
            pool: how many neighbouring positions are averaged; 1 gives 50 frames per second, 2 gives 25.

        Returns:
            Values (B, S, d), float32, the last layer after its layer norm or the ``layer`` that
            :func:`speech_encoder` was asked for, zero where masked; S is that of the longest recording:
            ceil(ceil(N / 320) / pool).

        Raises:
            ConfigError: ``pool`` is below 1.
            DataError: see :meth:`mel`.
        """
        require_pool(pool)
        device = next(self.encoder.parameters()).device
        hidden: Tensor = self.encoder(self.mel(waves).to(device)).last_hidden_state
        lengths = torch.tensor([math.ceil(wave.numel() / _HOP) for wave in waves], device=device)
        longest = math.ceil(int(lengths.max()) / pool) * pool
        hidden = nn.functional.pad(hidden, (0, 0, 0, max(longest - hidden.shape[1], 0)))[:, :longest]
        real = torch.arange(longest, device=device) < lengths[:, None]
        count = real.unflatten(1, (-1, pool)).sum(2)
        summed = (hidden * real[..., None]).unflatten(1, (-1, pool)).sum(2)
        return Frames(summed / count.clamp(min=1)[..., None], count > 0)

    def long(self, waves: Sequence[Float[Tensor, " _"]], *, pool: int = 1, batch_size: int = 16) -> Frames:
        """Encode recordings of any length, in windows of :attr:`max_seconds` whose frames are put one after the other.

        A window is encoded as a recording of its own: it attends to nothing outside, and positions begin anew. What is
        at most one window long gives the frames of ``__call__``. A guide should be trained on frames of the same kind.

        Args:
            waves: B waveforms of shape (N,), float32, 16 kHz, at least one sample each.
            pool: as in ``__call__``; windows are shortened to a multiple of ``pool`` positions.
            batch_size: windows encoded at once.

        Returns:
            Values (B, S, d), float32, zero where masked; S = ceil(ceil(N / 320) / pool) of the longest recording.

        Raises:
            ConfigError: ``pool`` is below 1 or above P, or ``batch_size`` is below 1.
            DataError: no recording, or one that is empty or not of shape (N,).
        """
        whole_number("batch_size", batch_size)
        require_pool_within(pool, self.positions)
        length = self.positions // pool * pool * _HOP
        cut = [wave.split(length) if wave.dim() == 1 and wave.numel() else (wave,) for wave in waves]
        pieces = [piece for own in cut for piece in own]
        found: list[Tensor] = []
        for first in range(0, max(len(pieces), 1), batch_size):  # mel() says what is wrong with no or bad recordings
            frames = self(pieces[first : first + batch_size], pool=pool)
            found += [values[mask] for values, mask in zip(frames.values, frames.mask, strict=True)]
        order = iter(found)
        rows = [torch.cat([next(order) for _ in own]) for own in cut]
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        values = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Frames(values, torch.arange(values.shape[1], device=values.device) < lengths[:, None])
