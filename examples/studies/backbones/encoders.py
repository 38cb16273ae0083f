"""The cells of the grid: a text encoder, an audio encoder, and the layer of the latter that is read.

Text is read by MiniLM (all six layers adapted) or by the decoder SmolLM2-135M (the state of a script's last token
pooled, the top six layers adapted; :mod:`examples.studies.verify_prompts.decoded`). Audio is heard by Whisper tiny.en,
which was trained on what is said (four blocks), or by the LSTM of ``resemblyzer``, which was trained on who says it
(three layers; :mod:`examples.studies.verify_prompts.speaker`). Both give 25 frames per second.

The last layer is what an encoder hands on, and what most users read. It also says most of the words: a ridge from a
recording's mean frame to MiniLM's embedding of its script (λ = 100, five folds of the published training and validation
recordings) tells a held-out recording's script from others with an AUC of .913, .914, .928 and .949 at Whisper's blocks
1 to 4, of .878, .893 and .894 at the LSTM's layers, and of .82 from mel energies. The other layer that is read is one
that says less: Whisper's second block, half-way, and the LSTM's first layer, whose second is as good as its last.

Frames have unit scale in every cell: Whisper's last block has its own layer norm, the second one that with which the
third block reads it, and an LSTM's state is brought to mean 0 and variance 1 over its numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from bayes_adapters.backbones import SpeechEncoder, language_model, speech_encoder, text_backbone
from bayes_adapters.errors import ConfigError
from examples.studies.backbones.folds import Folds
from examples.studies.verify_prompts import speaker
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.decoded import DecodedCorpus
from examples.studies.verify_prompts.features import POOL, Encoder, FrameStore
from examples.studies.verify_prompts.prompts import Prompt, load_prompts

ADAPTED = 6
"""Layers of the decoder that have adapters: as many as MiniLM has."""
TEXTS = {"minilm": "MiniLM", "smollm2": "SmolLM2"}
AUDIO = {"whisper": ("Whisper", (2, 4)), "lstm": ("LSTM", (1, 3))}
"""Name → title, and the layers that are read; the last one is the encoder's output."""


class Cell(NamedTuple):
    """A text encoder, an audio encoder, and the layer that is read, from 1."""

    text: str
    audio: str
    layer: int

    @property
    def name(self) -> str:
        """Such as ``minilm-whisper2``."""
        return f"{self.text}-{self.audio}{self.layer}"

    @property
    def title(self) -> str:
        """Such as ``MiniLM × Whisper 2/4``."""
        heard, layers = AUDIO[self.audio]
        return f"{TEXTS[self.text]} × {heard} {self.layer}/{layers[-1]}"


CELLS = {
    cell.name: cell
    for cell in (Cell(text, audio, layer) for text in TEXTS for audio in AUDIO for layer in AUDIO[audio][1])
}
"""Name → cell: the order of the tables."""


def whisper(layer: int) -> SpeechEncoder:
    """Return Whisper up to a block, and the layer norm with which the next block reads it.

    Args:
        layer: number of blocks, from 1; all of them are the encoder as it is.

    Raises:
        ConfigError: the encoder has no such block.
    """
    encoder = speech_encoder()
    net: Any = encoder.encoder
    if not 1 <= layer <= len(net.layers):
        raise ConfigError(f"layer={layer} cannot be read: the encoder has blocks 1 to {len(net.layers)}.")
    if layer < len(net.layers):
        net.layer_norm = net.layers[layer].self_attn_layer_norm
        net.layers = net.layers[:layer]
        net.config.encoder_layers = layer
    return encoder


def hearing(audio: str, layer: int) -> tuple[Encoder, int]:
    """Return an encoder, and how many of its frames are averaged to have 25 per second."""
    return (whisper(layer), POOL) if audio == "whisper" else (speaker.speaker_encoder(layer), speaker.POOL)


def prompts_of(languages: tuple[str, ...]) -> list[Prompt]:
    """Return the English prompts, and those of other languages that have an English one's key."""
    everything = load_prompts(("en", *languages))
    english = {prompt.key for prompt in everything if prompt.language == "en"}
    return [prompt for prompt in everything if prompt.key in english]


def corpus_of(
    cell: Cell, fold: int, prompts: list[Prompt], folds: Folds, states: Path, root: Path | None = None
) -> Corpus:
    """Return what a fold of a cell trains and tests on; all folds share one store of frames.

    Args:
        cell: which encoders.
        fold: which part is tested.
        prompts: of all languages.
        folds: of the English ones.
        states: where a decoder's hidden states are kept.
        root: where frames are kept; None is the cache folder.
    """
    encoder, pool = hearing(cell.audio, cell.layer)
    store = FrameStore(prompts, folds, encoder=encoder, root=root, pool=pool)
    _, tokenizer = text_backbone()
    corpus = Corpus(prompts, folds.splits(fold), dict.fromkeys(("train", "validation", "test"), store), tokenizer)
    return DecodedCorpus.of(corpus, *language_model(), ADAPTED, states) if cell.text == "smollm2" else corpus
