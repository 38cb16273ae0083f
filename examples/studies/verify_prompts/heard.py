"""Recordings for methods that adapt the speech encoder itself: log-mel features in the place of its frozen frames.

Whisper's encoder costs as much for a word as for five seconds, since both are padded with silence to its length. Here
a recording is padded to half seconds only (prompts last 1.7 s in the mean): the weights, the pairs and the number of
steps stay as they are, and a step costs less than half.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from bayes_adapters.backbones import SpeechEncoder
from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.verify_prompts.dataset import MISSING, Item, PairDataset, pad_tokens

WINDOW = 25
"""Positions are padded to a multiple of this: 0.5 s."""
_HOP = 320  # samples per position
_TAIL = 2  # mel frames after a recording's last position that its end still reaches
_QUIET = -1.5  # the extractor's value for digital silence: (log10(1e-10) + 4) / 4 …
_RANGE = 2.0  # … unless that is more than 80 dB below the loudest: (max − 8 + 4) / 4


class MelEncoder:
    """Log-mel features as frames for a :class:`~examples.studies.verify_prompts.features.FrameStore`.

    Args:
        speech: the encoder whose extractor makes them.
    """

    def __init__(self, speech: SpeechEncoder) -> None:
        self.speech = speech

    @property
    def width(self) -> int:
        """Mel bands."""
        return int(self.speech.extractor.feature_size)

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that change with the feature settings and the encoder's length."""
        settings = sorted(self.speech.extractor.to_dict().items(), key=lambda item: item[0])
        return hashlib.sha256(f"mel 1 {self.speech.positions} {settings!r}".encode()).hexdigest()

    def __call__(self, waves: Sequence[Float[Tensor, " _"]], *, pool: int = 1) -> Frames:
        """Compute features; those past a recording's end are masked.

        Args:
            waves: B waveforms of shape (N,), float32, 16 kHz.
            pool: 1; mel frames are not averaged.

        Returns:
            Values (B, S, 80), float32; a recording of N samples has ``2 · ceil(N / 320) + 2`` frames, 100 per second.

        Raises:
            ConfigError: another ``pool``.
            DataError: see :meth:`bayes_adapters.backbones.SpeechEncoder.mel`.
        """
        if pool != 1:
            raise ConfigError(f"Mel features are kept as they are; pool must be 1, got {pool}.")
        mel = self.speech.mel(waves).mT
        lengths = torch.tensor([2 * math.ceil(wave.numel() / _HOP) + _TAIL for wave in waves])
        longest = int(lengths.max())
        if longest > mel.shape[1]:  # a recording as long as the encoder: silence follows
            after = silence(mel)[:, None, None].expand(-1, longest - mel.shape[1], mel.shape[2])
            mel = torch.cat([mel, after], 1)
        return Frames(mel[:, :longest].contiguous(), torch.arange(longest) < lengths[:, None])


class WindowedWhisper(WhisperEncoder):  # type: ignore[misc]
    """Whisper's encoder for any whole number of positions up to its own; at its own length it is the stock encoder."""

    @classmethod
    def of(cls, speech: SpeechEncoder) -> WindowedWhisper:
        """Return a copy of the encoder, without dropout and layer drop, in eval mode, frozen."""
        encoder = cls(speech.encoder.config)
        encoder.load_state_dict(speech.encoder.state_dict(), strict=True)
        encoder.dropout = encoder.layerdrop = 0.0
        for layer in encoder.layers:
            layer.dropout = layer.activation_dropout = layer.self_attn.dropout = 0.0
        return encoder.eval().requires_grad_(False)

    def forward(self, input_features: Tensor, **_: Any) -> BaseModelOutput:
        """Encode mel features (B, 80, 2·P) with the first P position embeddings."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(input_features)))).mT
        if hidden.shape[1] > len(self.embed_positions.weight):
            raise DataError(
                f"The encoder has {len(self.embed_positions.weight)} positions; the features fill {hidden.shape[1]}."
            )
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, None)
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden))


class HeardPairs(PairDataset):
    """Pairs whose batches hold scripts and mel features for two encoders, ``text`` and ``audio``."""

    def window(self, index: int) -> int:
        """The number of half seconds a recording is padded to; 1 where it is withheld."""
        pair, condition, draw = self.describe(index)
        if condition == MISSING:
            return 1
        return windows(self._store.length(pair.language, condition, pair.recording_key, draw))

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"features": "mel", "window": WINDOW}

    def collate(self, items: Sequence[Item]) -> Batch:
        return collate_heard(items)


def windows(frames: int) -> int:
    """Return how many half seconds a recording of ``frames`` mel frames is padded to, at least 1.

    >>> [windows(frames) for frames in (0, 4, 52, 54, 502)]
    [1, 1, 1, 2, 10]
    """
    return max(1, math.ceil(_positions(frames) / WINDOW))


def silence(mel: Float[Tensor, "*B S m"]) -> Float[Tensor, "*B"]:
    """Return what the extractor gives for silence within a recording of these features: it depends on the loudest.

    Args:
        mel: shape (*B, S, m), S ≥ 1.
    """
    return (mel.amax((-2, -1)) - _RANGE).clamp_min(_QUIET)


def collate_heard(items: Sequence[Item], pad_id: int = 0) -> Batch:
    """Pad items to a batch for an ``nn.ModuleDict`` of encoders ``text`` and ``audio``.

    Args:
        items: B items whose frames are mel features (S, m), S = 0 where the audio is withheld.
        pad_id: the tokenizer's padding token; it is masked.

    Returns:
        Inputs ``text.input_ids`` and ``text.attention_mask`` (B, T) int64; ``audio.input_features`` (B, m, 2·P)
        float32, every recording padded with its own silence to the longest window of the batch, P a multiple of 25;
        ``audio.token_mask`` (B, P) bool, real positions; ``audio.present`` (B,) bool. Targets (B,) float32 in {0, 1},
        and each item's index. Where every example's audio is withheld there are no inputs of ``audio``.
    """
    ids, token_mask = pad_tokens(items, pad_id)
    inputs = {"text.input_ids": ids, "text.attention_mask": token_mask}
    targets, index = torch.tensor([float(i.label) for i in items]), torch.tensor([i.index for i in items])
    present = torch.tensor([len(item.frames) > 0 for item in items])
    if not bool(present.any()):
        return Batch(inputs, targets, index=index)
    positions = WINDOW * max(windows(len(item.frames)) for item in items)
    features = torch.full((len(items), 2 * positions, items[0].frames.shape[1]), _QUIET)
    mask = torch.zeros(len(items), positions, dtype=torch.bool)
    mask[:, 0] = True  # an example without audio is pooled too, and then replaced
    for row, item in enumerate(items):
        if len(item.frames):
            kept = item.frames[: 2 * positions]
            features[row] = silence(item.frames)
            features[row, : len(kept)] = kept
            mask[row, : _positions(len(item.frames))] = True
    inputs |= {"audio.input_features": features.mT, "audio.token_mask": mask, "audio.present": present}
    return Batch(inputs, targets, index=index)


def _positions(frames: int) -> int:
    return max(0, frames - _TAIL) // 2
