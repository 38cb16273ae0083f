"""A head for boxes and masks of patches: one that a user writes, for features that know where they are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.errors import ConfigError, DataError, whole_number
from bayes_adapters.heads import Head
from bayes_adapters.likelihoods import BoundingBox, Likelihood, Masks, Tasks

_SIZE = 0.25
"""Width and height at the start, shares of the image."""


class GroundingHead(Head):
    """A mask from every patch, and a box from where attention over the patches lies.

    A linear head on the mean of the patches knows what is in a picture, and hardly where: patches of all places are
    added with equal weights. Here, with x_p the features of patch p (its own and what stands beside them, the words')
    after a layer norm, and c_p in (0, 1)² the middle of the patch::

        z_p    = GELU( W [ (V x_p + v) ∘ (U x_p + u) ] + w )      products: of what the patch shows and the words say
        a      = softmax_p( s · z_p )                             one weight per patch
        f_mask = M z_p + m                                        of every patch
        f_box  = [ logit Σ_p a_p c_p , logit ¼ , logit ¼ , 0 … ] + B Σ_p a_p z_p

    The first two outputs are the box's centre, a mean of places; B z moves it within a patch, and gives width, height
    and, where the likelihood has a scale per example, its four numbers. B and M start at 0, s as a linear layer.

    The likelihood is :class:`Tasks` of :class:`BoundingBox` and :class:`Masks`, which has outputs for every token, and
    reads a box from the mean of its columns over tokens. So every token gets the same f_box.

    A saved adapter holds the head's name and options: whoever saves or loads one says ``registry.register(
    GroundingHead)`` first.

    Args:
        hidden: width of z.
        grid: (h, w), the patches of a picture, in rows.
        prefix: special tokens before the patches; their masks count nowhere (``Masks(skip=)``).

    >>> head = GroundingHead(8, grid=(2, 2), prefix=1)
    >>> head.prepare(6, Tasks({"box": BoundingBox(), "mask": Masks((2, 2), (8, 8), skip=1)}))
    >>> found = head(torch.randn(3, 5, 6))
    >>> found.shape, found[:, :, 2:4].detach().sigmoid().unique()
    (torch.Size([3, 5, 5]), tensor([0.2500]))
    """

    name: ClassVar[str] = "grounding_of_patches"
    places: Tensor

    def __init__(self, hidden: int = 128, grid: tuple[int, int] = (8, 8), prefix: int = 1) -> None:
        super().__init__()
        whole_number("hidden", hidden)
        whole_number("prefix", prefix, 0)
        self.hidden, self.grid, self.prefix = hidden, (int(grid[0]), int(grid[1])), prefix
        height, width = self.grid
        down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        middles = torch.stack([(across + 0.5) / width, (down + 0.5) / height], -1)
        self.register_buffer("places", middles.flatten(0, 1), persistent=False)

    def suit(self, likelihood: Likelihood) -> None:
        super().suit(likelihood)
        if not isinstance(likelihood, Tasks) or not all(
            isinstance(task, BoundingBox | Masks) for task in likelihood.each.values()
        ):
            raise ConfigError(
                "GroundingHead gives outputs for Tasks of BoundingBox and Masks only; got "
                f"{type(likelihood).__name__}. Take Tasks({{'box': BoundingBox(), 'mask': Masks(…)}}), and leave the "
                "targets of one of them out of a batch where only the other is asked."
            )

    def build(self, width: int, likelihood: Likelihood) -> None:
        self.norm = nn.LayerNorm(width)
        self.values, self.gates = nn.Linear(width, self.hidden), nn.Linear(width, self.hidden)
        self.mixed, self.score = nn.Linear(self.hidden, self.hidden), nn.Linear(self.hidden, 1, bias=False)
        tasks = likelihood.each if isinstance(likelihood, Tasks) else {}
        layers = {name: nn.Linear(self.hidden, task.num_outputs) for name, task in tasks.items()}
        self.answers = nn.ModuleDict(layers)
        self.boxes = frozenset(name for name, task in tasks.items() if isinstance(task, BoundingBox))
        for name, layer in layers.items():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            if name in self.boxes:
                nn.init.constant_(layer.bias[2:4], torch.logit(torch.tensor(_SIZE)).item())

    def forward(self, features: Float[Tensor, "rows T d"]) -> Float[Tensor, "rows T K"]:
        patches = features.shape[1] - self.prefix
        if patches != len(self.places):
            raise DataError(
                f"GroundingHead(grid={self.grid}, prefix={self.prefix}) reads {self.prefix + len(self.places)} tokens; "
                f"got {features.shape[1]}. Is the picture of another size?"
            )
        x = self.norm(features.to(self.norm.weight.dtype))
        z = F.gelu(self.mixed(self.values(x) * self.gates(x)))
        found = []
        for name, layer in self.answers.items():
            answer = self._box(layer, z)[:, None].expand(-1, z.shape[1], -1) if name in self.boxes else layer(z)
            found.append(answer)
        return torch.cat(found, -1)

    def attention(self, z: Float[Tensor, "rows T hidden"]) -> Float[Tensor, "rows P"]:
        """Return the weight of each patch, shape (rows, P); they sum to 1."""
        return self.score(z[:, self.prefix :])[..., 0].softmax(-1)

    def _box(self, layer: nn.Module, z: Float[Tensor, "rows T hidden"]) -> Float[Tensor, "rows K"]:
        weights = self.attention(z)
        seen = torch.einsum("bp,bph->bh", weights, z[:, self.prefix :])
        centre = torch.logit(weights @ self.places)  # places lie at least half a patch within the image
        moved: Tensor = layer(seen)
        return torch.cat([centre + moved[:, :2], moved[:, 2:]], -1)

    def config(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "grid": list(self.grid), "prefix": self.prefix}
