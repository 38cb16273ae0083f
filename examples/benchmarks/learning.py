"""Does training with ``fit`` work here? Synthetic pairs of a text and a recording that match or do not."""

from __future__ import annotations

import torch

from bayes_adapters import Batch, Frames
from bayes_adapters.training import fit
from examples.benchmarks.agreement import Check
from examples.benchmarks.workload import Backbones, Sizes, build

LOSS_FALLS_TO = 0.8
"""The largest final nll, as a share of the first epoch's, that counts as learning."""


def synthetic_pairs(count: int, sizes: Sizes, vocabulary: int, seed: int = 0) -> list[Batch]:
    """Batches of pairs: the words tell one of two topics, the frames too; y = 1 where they agree.

    Neither text nor audio alone says anything about y.
    """
    source = torch.Generator().manual_seed(seed)
    topics = torch.randn(2, sizes.width, generator=source)
    words = torch.randperm(vocabulary, generator=source)[:8].view(2, 4)
    text, match = (torch.randint(2, (count,), generator=source) for _ in range(2))
    sound = torch.where(match == 1, text, 1 - text)
    chosen = torch.randint(words.shape[1], (count, sizes.tokens), generator=source)
    noise = torch.randn(count, sizes.frames, sizes.width, generator=source)
    whole = Batch(
        {
            "input_ids": words[text[:, None], chosen],
            "attention_mask": torch.ones(count, sizes.tokens, dtype=torch.long),
        },
        match.float(),
        {"audio": Frames(topics[sound][:, None] + 0.5 * noise, torch.ones(count, sizes.frames, dtype=torch.bool))},
    )
    return [whole[start : start + sizes.batch] for start in range(0, count, sizes.batch)]


def check_learning(backbones: Backbones, device: str, *, autocast: bool, quick: bool = False) -> Check:
    """Train CALIBER-X on synthetic pairs; its nll must fall to :data:`LOSS_FALLS_TO` of the first epoch's."""
    backbone = backbones().to(device)
    sizes = Sizes(16, 6, 5, 12) if quick else Sizes(16, 32, 60, 384)
    data = synthetic_pairs(128, sizes, backbone.config.vocab_size)
    model, guide = build("caliber-x", backbone, sizes.width)
    guide.to(device)
    result = fit(
        model,
        guide,
        data,
        recipe=None,
        epochs=12,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2 if quick else 3e-3),
        kl_weight=1e-4,
        clip_norm=1.0,
        progress=False,
        autocast=torch.bfloat16 if autocast else None,
    )
    first, last = result.history[0]["nll"], min(epoch["nll"] for epoch in result.history[-3:])
    kind = "bfloat16 autocast" if autocast else "float32"
    name = f"training CALIBER-X, {backbones.name}, {kind}"
    return Check(name, last <= LOSS_FALLS_TO * first, f"nll {first:.3f} -> {last:.3f} nats in {result.steps} steps")
