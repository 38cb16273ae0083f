"""A small transformer over one body signal: Frames of samples in, Frames of one vector per second out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormModel
from transformers.modeling_outputs import BaseModelOutput

from bayes_adapters import Frames
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.body_signals.data import DERIVED, MODALITIES, SECONDS, Modality


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes of the transformer.

    Args:
        width: d, features of a patch.
        layers, heads: blocks, and attention heads of each.
        inner: width of the feed-forward layers.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    inner: int = 128


class SignalEncoder(nn.Module):
    """``H = transformer(patches(x) W + b + positions)``: a patch is one second, the transformer is pre-norm.

    The transformer is Hugging Face's RoBERTa-PreLayerNorm without a vocabulary. Its linear layers are called ``query``,
    ``key``, ``value``, ``dense``, so the library's default targets fit it, and ``config.hidden_size`` is d: an encoder
    can be the backbone of any model of the library, with ``inputs={"signal": values}``.

    Args:
        modality: rate and channels of the signal.
        settings: sizes.

    Raises:
        ConfigError: the width is no multiple of the heads.
    """

    def __init__(self, modality: Modality, settings: EncoderSettings | None = None) -> None:
        super().__init__()
        settings = EncoderSettings() if settings is None else settings
        if min(vars(settings).values()) < 1 or settings.width % settings.heads:
            raise ConfigError(f"Sizes must be positive, and the width a multiple of the heads; got {settings}.")
        self.modality = modality
        self.config = RobertaPreLayerNormConfig(
            vocab_size=1,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            type_vocab_size=1,
            hidden_size=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=settings.inner,
            max_position_embeddings=SECONDS + 1,  # RoBERTa counts positions from pad_token_id + 1
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.patch = nn.Linear(self.patch_size, settings.width)
        self.transformer = RobertaPreLayerNormModel(self.config, add_pooling_layer=False)
        self.transformer.embeddings.word_embeddings.weight.requires_grad_(False)  # no words: only patches come in

    @property
    def patch_size(self) -> int:
        """Numbers in a patch: one second of every channel."""
        return self.modality.rate * self.modality.channels

    def patches(self, signal: Float[Tensor, "B S C"]) -> Float[Tensor, "B P k"]:
        """Cut samples (B, S, channels) into seconds (B, P = S / rate, k = rate · channels).

        Raises:
            DataError: other channels, no whole number of seconds, or more of them than a window has.
        """
        rate, channels = self.modality
        rows, samples, given = signal.shape
        if given != channels or samples % rate or not 0 < samples <= self.modality.samples:
            raise DataError(
                f"A signal must be (B, S, {channels}) with S a multiple of {rate} (whole seconds) of at most "
                f"{self.modality.samples}; got {tuple(signal.shape)}. Is it another modality or sampling rate?"
            )
        return signal.reshape(rows, samples // rate, self.patch_size)

    def forward(
        self, signal: Float[Tensor, "B S C"], attention_mask: Int[Tensor, "B P"] | None = None
    ) -> BaseModelOutput:
        """Encode samples, shape (B, S, channels); ``attention_mask`` (B, P) is 0 at seconds that do not count.

        Returns:
            ``last_hidden_state``, shape (B, P, d).
        """
        return self.embedded(self.patch(self.patches(signal)), attention_mask)

    def embedded(self, patches: Float[Tensor, "B P d"], attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Run the transformer on embedded patches."""
        hidden = self.transformer(inputs_embeds=patches, attention_mask=attention_mask).last_hidden_state
        return BaseModelOutput(last_hidden_state=hidden)

    def encode(self, frames: Frames) -> Frames:
        """Map samples (B, S, channels) to seconds (B, P, d); a second is real when all of its samples are."""
        self.patches(frames.values)  # refuses what has no whole seconds
        mask: Bool[Tensor, "B P"] = frames.mask.reshape(len(frames.mask), -1, self.modality.rate).all(-1)
        absent = ~mask.any(-1, keepdim=True)
        hidden = self(frames.values, (mask | absent).long()).last_hidden_state  # attention over nothing is undefined
        return Frames(hidden, mask)


def build_encoder(name: str, settings: EncoderSettings, seed: int) -> SignalEncoder:
    """Return the untrained encoder of modality ``name``, a function of ``seed``; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SignalEncoder((MODALITIES | DERIVED)[name], settings)


@torch.no_grad()
def encode(encoder: SignalEncoder, frames: Frames, batch_size: int = 256) -> Frames:
    """Encode many windows without gradients, ``batch_size`` at a time."""
    parts = [encoder.encode(frames[i : i + batch_size]) for i in range(0, len(frames.values), batch_size)]
    return Frames(torch.cat([p.values for p in parts]), torch.cat([p.mask for p in parts]))
