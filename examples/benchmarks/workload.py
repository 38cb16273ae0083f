"""What the benchmarks run on: a backbone, a batch of random tokens and frames, and the two Bayesian methods."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Bernoulli, Frames, adapted_layers
from bayes_adapters.backbones import text_backbone
from bayes_adapters.errors import MissingResourceError
from bayes_adapters.guides import Contextual, CrossAttention, Delta
from bayes_adapters.models import LoRA, StochasticCore

RANK, ALPHA, CONTEXT_DIM = 8, 16.0, 64
TARGETS = ("query", "value")
KL_WEIGHT = 1e-3
"""Any weight costs the same; this one keeps the loss near that of training."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one batch.

    Args:
        batch: B, examples.
        tokens: T, tokens an example, padding included.
        frames: F, audio frames an example.
        width: d_a, width of a frame.
    """

    batch: int = 16
    tokens: int = 32
    frames: int = 60
    width: int = 384

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens} tokens, {self.frames} frames of {self.width}"


class Backbones:
    """Fresh copies of one frozen text encoder without dropout.

    Args:
        kind: ``"minilm"`` (pretrained), ``"minilm-random"`` (its config, random weights, no download), ``"tiny"`` (two
            layers, for tests), or ``"minilm-or-random"``: pretrained where it can be had; the attribute ``name`` says
            which.
    """

    def __init__(self, kind: str) -> None:
        self._random = kind != "minilm"
        if kind == "minilm-or-random":
            try:
                text_backbone()
                self._random = False
            except MissingResourceError as error:
                self.reason = str(error)
        self.tiny = kind == "tiny"
        size = "2-layer BERT of width 32" if self.tiny else "MiniLM-L6-H384"
        self.name = f"{size}, random weights" if self._random else "all-MiniLM-L6-v2, pretrained"

    def __call__(self) -> Any:
        """Return a fresh copy; every copy has the same weights."""
        model = self._make() if self._random else text_backbone()[0]
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model.eval().requires_grad_(False)

    def _make(self) -> nn.Module:
        from transformers import BertConfig, BertModel

        if self.tiny:
            shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            shape |= {"intermediate_size": 64}
        else:
            shape = {"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
            shape |= {"intermediate_size": 1536}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
            return BertModel(config)


def make_batch(sizes: Sizes, vocabulary: int, *, device: str | torch.device = "cpu", seed: int = 0) -> Batch:
    """Random tokens and frames; every second example is padded, every fourth has no audio."""
    source = torch.Generator().manual_seed(seed)
    mask = torch.ones(sizes.batch, sizes.tokens, dtype=torch.long)
    mask[1::2, -(-3 * sizes.tokens // 4) :] = 0
    heard = torch.ones(sizes.batch, sizes.frames, dtype=torch.bool)
    heard[1::2, sizes.frames // 2 :] = False
    heard[3::4] = False
    batch = Batch(
        {
            "input_ids": torch.randint(vocabulary, (sizes.batch, sizes.tokens), generator=source),
            "attention_mask": mask,
        },
        torch.randint(2, (sizes.batch,), generator=source).float(),
        {"audio": Frames(torch.randn(sizes.batch, sizes.frames, sizes.width, generator=source), heard)},
    )
    return batch.to(device)


METHODS = ("c-lora", "caliber-x")
"""The Bayesian methods that are timed: ``Contextual``, and ``CrossAttention`` of width 64."""


def build(method: str, backbone: nn.Module, frame_width: int) -> tuple[AdapterModel, AdapterGuide]:
    """Build ``method`` (``"lora"`` or one of :data:`METHODS`) with B ≠ 0, so that the cores reach the loss."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"targets": TARGETS, "rank": RANK, "alpha": ALPHA}
    model: AdapterModel
    if method == "lora":
        model = LoRA(backbone, Bernoulli(), **options)
        guide: AdapterGuide = Delta(model)
    else:
        model = StochasticCore(backbone, Bernoulli(), **options)
        guide = (
            Contextual(model) if method == "c-lora" else CrossAttention(model, context_dim=frame_width, dim=CONTEXT_DIM)
        )
    fill_up_projections(model)
    return model, guide


def fill_up_projections(model: AdapterModel, scale: float = 0.02) -> None:
    """Draw every B from N(0, scale²)."""
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            if layer.lora_B is not None:
                layer.lora_B.normal_(0.0, scale)


def checkpoint_blocks(backbone: Any, *, on: bool) -> None:
    """Switch a backbone's gradient checkpointing, as a user of Hugging Face does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its new name, which earlier versions lack
        if on:
            backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            backbone.gradient_checkpointing_disable()
