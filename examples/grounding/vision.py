"""A small vision transformer, and its pre-training: to name and outline what each patch shows, and redraw the hidden.

No expression and no box is seen. A batch is pictures and, per pixel, which of some names it shows, as drawn by whoever
calls; patches inherit the names of their pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from bayes_adapters.backbones import cache_folder
from bayes_adapters.backbones._resources import install_once, say
from bayes_adapters.errors import ConfigError, NonFiniteError

NO_NAME = -100
"""Of a pixel or patch that counts nowhere."""
_MOST, _LEAST = 0.30, 0.05  # shares of a patch: above the first it shows the thing, below the second the ground


class Labelled(NamedTuple):
    """Pictures, and what each pixel shows.

    Args:
        scenes: shape (B, 3, S, S), uint8.
        names: shape (B, S, S), int64: 0 is the ground, from 1 on the names; less than the ``names`` of the settings.
        tints: shape (B, S, S), int64: 0 is the ground or a thing's own colours, from 1 on the colours.
    """

    scenes: UInt8[Tensor, "B 3 S S"]
    names: Int[Tensor, "B S S"]
    tints: Int[Tensor, "B S S"]


@dataclass(frozen=True)
class VisionSettings:
    """Sizes of the transformer, and how it is pre-trained.

    Args:
        image_size, patch_size: in pixels; the first a multiple of the second.
        width, layers, heads: of the transformer; its MLPs are four times as wide.
        steps, batch_size, lr: of AdamW, warmed up over a twentieth of the steps, then a half cosine.
        hidden: share of the patches that are hidden.
        redraw: weight of redrawing them beside naming all patches.
        seed: of weights, order and hidden patches.
    """

    image_size: int = 128
    patch_size: int = 16
    width: int = 128
    layers: int = 6
    heads: int = 4
    steps: int = 1500
    batch_size: int = 16
    lr: float = 1e-3
    hidden: float = 0.15
    redraw: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.width % self.heads or self.width % 4 or not 0 < self.hidden < 1:
            raise ConfigError(
                "image_size must be a multiple of patch_size, width one of heads and of 4, and hidden between 0 and 1; "
                f"got {self}."
            )

    def transformer(self) -> ViTModel:
        """Return a new one, drawn from torch's generator, without a pooling layer; patches know their places.

        The embedding of the places starts as 0.3 times sines and cosines of column and row; it is trained too.
        """
        config = ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            hidden_act="gelu_pytorch_tanh",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        vit = ViTModel(config, add_pooling_layer=False, use_mask_token=True)
        with torch.no_grad():
            vit.embeddings.position_embeddings[0, 1:] = 0.3 * places(self.image_size // self.patch_size, self.width)
        return vit


def places(side: int, width: int) -> Float[Tensor, "P width"]:
    """Return ``(sin x f, cos x f, sin y f, cos y f)`` of each patch's column x and row y, row by row.

    Args:
        side: patches per row and per column; P is their product.
        width: a multiple of 4; the quarter of it is the number of frequencies f, from 1 down to 1/100.

    >>> places(2, 8).shape
    torch.Size([4, 8])
    """
    frequencies = torch.logspace(0, -2, width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], -1)
    return torch.cat([waves.repeat(side, 1), waves.repeat_interleave(side, 0)], -1)


def in_patches(labels: Int[Tensor, "B S S"], patch_size: int) -> Int[Tensor, "B P"]:
    """Return the label of each patch, row by row, shape (B, P), int64.

    The commonest label above 0 counts where it covers at least 30 % of the patch; a patch with less than 5 % of labels
    above 0 is 0; any other is :data:`NO_NAME`.

    >>> labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    >>> labels[0, :2, 2:], labels[0, 3, 0] = 7, 5
    >>> in_patches(labels, 2)
    tensor([[   0,    7, -100,    0]])
    """
    side = labels.shape[-1] // patch_size
    cells = (
        labels.unflatten(2, (side, patch_size))
        .unflatten(1, (side, patch_size))
        .transpose(2, 3)
        .flatten(3)
        .flatten(1, 2)
    )
    shown = cells > 0
    share = shown.float().mean(-1)
    blanked = torch.where(shown, cells, -torch.arange(1, cells.shape[-1] + 1))  # each ground pixel a value of its own
    common = blanked.mode(-1).values
    enough = (cells == common[..., None]).float().mean(-1) >= _MOST
    return torch.where((common > 0) & enough, common, torch.where(share < _LEAST, 0, NO_NAME))


class Naming(nn.Module):
    """``loss = CE(names) + CE(tints) + mean |c - (V h + a)|² + redraw · mean over hidden patches of |x - (W h + b)|²``.

    The code c of a name says what pictures of that name look like, at a mean square of 1. Names that look alike have
    codes that are alike, which the names themselves do not tell.

    Args:
        vit: trained in place.
        codes: shape (names, k), float32: a code of each name, the ground's first.
        tints: how many labels there are, the ground's included.
        settings: see there.
    """

    codes: Tensor

    def __init__(self, vit: ViTModel, codes: Float[Tensor, "names k"], tints: int, settings: VisionSettings) -> None:
        super().__init__()
        self.vit, self.settings = vit, settings
        self.register_buffer("codes", codes, persistent=False)
        self.names, self.tints = nn.Linear(settings.width, len(codes)), nn.Linear(settings.width, tints)
        self.coded = nn.Linear(settings.width, codes.shape[1])
        self.redrawn = nn.Linear(settings.width, 3 * settings.patch_size**2)

    def forward(self, batch: Labelled, hidden: Int[Tensor, "B P"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the loss, and the share of patches with a thing that are named rightly."""
        size = self.settings.patch_size
        pixels = batch.scenes.float() / 127.5 - 1
        tokens = self.vit(pixels, bool_masked_pos=hidden).last_hidden_state[:, 1:]
        names, tints = in_patches(batch.names, size), in_patches(batch.tints, size)
        scores = self.names(tokens).flatten(0, 1).float()
        named = F.cross_entropy(scores, names.flatten(), ignore_index=NO_NAME)
        coloured = F.cross_entropy(self.tints(tokens).flatten(0, 1).float(), tints.flatten(), ignore_index=NO_NAME)
        patches = F.unfold(pixels, size, stride=size).mT
        redrawn = (self.redrawn(tokens).float() - patches)[hidden.bool()].square().mean()
        things = names.flatten() > 0
        wanted = self.codes[names.flatten()[things]]
        coded = F.mse_loss(self.coded(tokens.flatten(0, 1)[things]), wanted)
        right = (scores.argmax(-1) == names.flatten())[things].float().mean()
        return named + coloured + coded + self.settings.redraw * redrawn, right.detach()


def pretrain(
    draw: Callable[[int], Labelled], codes: Float[Tensor, "names k"], tints: int, settings: VisionSettings
) -> tuple[ViTModel, list[float]]:
    """Train a transformer from nothing, in float32.

    Args:
        draw: step → its batch, the same for the same step.
        codes: of the names, see :class:`Naming`.
        tints: how many, the ground's included.
        settings: see there.

    Returns:
        The frozen transformer in eval mode, and the share of patches named rightly, a mean over every 50 steps.

    Raises:
        NonFiniteError: the loss is NaN or infinite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Naming(settings.transformer(), codes, tints, settings)
    source = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.02, betas=(0.9, 0.98))
    warm = max(1, settings.steps // 20)
    shape = lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / settings.steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    model.train()
    seen: list[float] = []
    for step in range(settings.steps):
        batch = draw(step)
        patches = (settings.image_size // settings.patch_size) ** 2
        hidden = torch.rand(len(batch.scenes), patches, generator=source) < settings.hidden
        loss, right = model(batch, hidden.long())
        if not bool(loss.isfinite()):
            raise NonFiniteError(f"The loss of step {step} is {loss.item()}. A lower lr helps.")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen.append(float(right))
        if (step + 1) % 50 == 0:
            say(f"step {step + 1} of {settings.steps}: {sum(seen[-50:]) / 50:.3f} of the patches are named rightly")
    vit = model.vit.eval().requires_grad_(False)
    return vit, [sum(part) / len(part) for part in (seen[i : i + 50] for i in range(0, len(seen), 50))]


def pretrained(
    name: str,
    draw: Callable[[int], Labelled],
    codes: Float[Tensor, "names k"],
    tints: int,
    settings: VisionSettings,
    root: Path | None = None,
) -> ViTModel:
    """Return the frozen transformer from the cache, or train it now and keep it there.

    Args:
        name: of what it is trained on; part of the folder's name, with a digest of the settings.
        draw: as for :func:`pretrain`, and so is all but ``root``.
        codes: likewise.
        tints: likewise.
        settings: see there.
        root: where it lies; ``vision`` in the cache folder when not given.
    """
    root = cache_folder() / "vision" if root is None else root
    about = {"name": name, "names": len(codes), "tints": tints, "settings": asdict(settings)}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{name}-{digest}"
    if not folder.is_dir():
        say(f"training a vision transformer, once, into {folder}")
        vit, right = pretrain(draw, codes, tints, settings)
        with install_once(root, folder.name) as work:
            vit.save_pretrained(work)
            (work / "pretraining.json").write_text(json.dumps({**about, "right": right}, indent=1) + "\n")
    vit = ViTModel.from_pretrained(folder, add_pooling_layer=False, use_mask_token=True)
    return vit.eval().requires_grad_(False)
