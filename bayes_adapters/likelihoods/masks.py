"""One class per pixel of an image, from outputs per patch."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Integer
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn import functional as F

from bayes_adapters.devices import float64
from bayes_adapters.distributions.pixel_labels import PixelLabels
from bayes_adapters.distributions.potential import WithPotential, density_of
from bayes_adapters.errors import choice, whole_number
from bayes_adapters.likelihoods._box_checks import require_potential
from bayes_adapters.likelihoods._mask_checks import checked_pair, require_finer, require_masks, require_patches
from bayes_adapters.likelihoods._splits import class_prediction, entropy, split
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.prediction import Prediction


class Unit(StrEnum):
    """What counts as one observation in the ELBO; the weight w of a pixel follows."""

    CELL = "cell"
    """Every cell of the grid of logits: w = h w d² / (H W)."""
    PIXEL = "pixel"
    """Every pixel: w = 1, the density itself."""
    MASK = "mask"
    """Every mask: w = 1 / (H W), the mean over pixels."""


class Masks(Likelihood):
    """``y_p ~ Bernoulli(sigmoid(f_p))`` for every pixel p of an H × W image, or a class of C each.

    Outputs are K = C d² numbers per patch, of h × w patches in rows from the top left, behind ``skip`` special tokens.
    They are logits of a grid of (h d) × (w d) cells, which become pixels by bilinear interpolation between the cells'
    centres (``align_corners=False``; beyond the outermost centres the nearest value). Patches that ``token_mask`` calls
    padding have no part in it, and their pixels no label.

    Targets: int64 of shape (B, H, W): 0 or 1, or class numbers 0 … C − 1, and −100 where a pixel has no label.

    Density: ``log p(y | x, E) = Σ_p log p(y_p | f_p)`` over labelled pixels, nats. ``log_density`` of a prediction is
    that sum, jointly over pixels: the average over draws is then nearly that of the best draw. Probabilities (B, H, W),
    or (B, H, W, C), and entropies (B, H, W), are each pixel's own; :meth:`Prediction.summed` adds up.

    **What counts as an observation.** Given f pixels are not independent: those of a cell are right or wrong together.
    The sum counts an error as often as it is printed, so that twice the resolution would be four times the evidence,
    and a posterior over weights narrower by a half, though nothing new was seen. Let the n pixels of a cell err
    together and cells independently; then the score of the sum has the variance n² per cell where its curvature says n,
    and the sharpened posterior has its right width with w = 1 / n (the adjustment of composite likelihoods). So the
    ELBO scores ``w log p``, by default with ``unit="cell"``, w = h w d² / (H W), whatever the resolution;
    ``"pixel"`` leaves the density, ``"mask"`` counts each example once, as the mean over pixels of most segmentation
    losses does. Where a part of the labels is missing, so is that part of the evidence. Weights of :class:`Tasks` come
    on top.

    **The Dice term** is no part of that density. With ``dice_weight = v`` the ELBO scores ``w log p(y | f) − v (1 −
    Dice(p, y))`` with ``Dice = (2 Σ p y + 1) / (Σ p + Σ y + 1)`` over labelled pixels, for C > 1 the mean over classes:
    a Gibbs potential, as the GIoU of :class:`BoundingBox`, in training only.

    Args:
        grid: (h, w), the patches of the image.
        size: (H, W), the pixels of a mask; of each at least as many as cells.
        classes: C; 1 for yes or no.
        skip: special tokens before the patches: 1 for the class token of a ViT, 0 for Swin, 5 for one with registers.
        detail: d: every patch has d × d cells.
        unit: ``cell``, ``pixel`` or ``mask``.
        dice_weight: v ≥ 0, nats.

    Source: composite likelihoods, Varin, Reid and Firth 2011; Pauli, Racugno and Ventura 2011. Dice, Milletari et al.
    2016, arXiv 1606.04797; Sudre et al. 2017, arXiv 1707.03237.

    >>> likelihood = Masks(grid=(1, 2), size=(1, 4), unit="pixel")
    >>> fn = likelihood.of_tokens(torch.tensor([[[0.0], [4.0]]]), None)  # two patches
    >>> fn.base_dist.logits[..., 0]
    tensor([[[0., 1., 3., 4.]]])
    >>> fn.log_prob(torch.tensor([[[1, -100, -100, -100]]])).exp()
    tensor([0.5000])
    """

    name: ClassVar[str] = "masks"
    per_token: ClassVar[bool] = True
    bounded: ClassVar[bool] = True

    def __init__(
        self,
        grid: Sequence[int],
        size: Sequence[int],
        classes: int = 1,
        *,
        skip: int = 0,
        detail: int = 1,
        unit: Unit | str = Unit.CELL,
        dice_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid, self.size = checked_pair("grid", grid), checked_pair("size", size)
        for name, value, least in (("classes", classes, 1), ("skip", skip, 0), ("detail", detail, 1)):
            whole_number(name, value, least)
        require_finer(self.grid, self.size, detail)
        require_potential("dice_weight", dice_weight)
        self.classes, self.skip, self.detail, self.dice_weight = classes, skip, detail, float(dice_weight)
        self.unit = choice(Unit, "unit", unit)
        self.num_outputs = classes * detail**2

    @property
    def weight(self) -> float:
        """w: what one pixel counts in the ELBO."""
        pixels, cells = self.size[0] * self.size[1], self.grid[0] * self.grid[1] * self.detail**2
        return {Unit.CELL: cells / pixels, Unit.PIXEL: 1.0, Unit.MASK: 1.0 / pixels}[self.unit]

    def distribution(self, outputs: Float[Tensor, "*S B T K"]) -> TorchDistributionMixin:
        return self.of_tokens(outputs, None)

    def of_tokens(self, outputs: Float[Tensor, "*S B T K"], real: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        require_patches(outputs.shape[-2], self.grid, self.skip)
        logits, known = self._pixels(
            outputs[..., self.skip :, :].float(), None if real is None else real[:, self.skip :]
        )
        labels = PixelLabels(logits, known, validate_args=False)
        potential = partial(_potential, labels, self.dice_weight) if self.dice_weight else None
        return WithPotential(labels, potential, self.weight, validate_args=False)

    def _pixels(
        self, outputs: Float[Tensor, "*S B P K"], real: Bool[Tensor, "B P"] | None
    ) -> tuple[Float[Tensor, "*S B H W C"], Bool[Tensor, "B H W"] | None]:
        """Logits of pixels, and which pixels are those of real patches."""
        (h, w), d, lead = self.grid, self.detail, outputs.shape[:-2]
        cells = (
            outputs.reshape(-1, h, w, self.classes, d, d)
            .permute(0, 3, 1, 4, 2, 5)
            .reshape(-1, self.classes, h * d, w * d)
        )
        known = None
        if real is None:
            pixels = self._between(cells)
        else:  # the mean over real neighbours, with the weights of the interpolation
            mask = real.reshape(-1, 1, h, w).repeat_interleave(d, 2).repeat_interleave(d, 3)
            known = F.interpolate(mask.float(), self.size, mode="nearest-exact")[:, 0] > 0.5
            every = mask.expand(len(cells) // len(mask), *mask.shape).flatten(0, 1)
            weights = self._between(every.float())
            pixels = self._between(cells.masked_fill(~every, 0.0)) / torch.where(weights > 0, weights, 1.0)
        return pixels.movedim(1, -1).reshape(*lead, *self.size, self.classes), known

    def _between(self, cells: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C H W"]:
        return F.interpolate(cells, self.size, mode="bilinear", align_corners=False)

    def check(self, targets: Tensor) -> None:
        require_masks(targets, self.size, self.classes)

    def draw_mean(self, fn: Any) -> Tensor:
        probs: Tensor = density_of(fn).probs
        return probs

    def log_density(self, fn: Any, targets: Any) -> Float[Tensor, "S B"]:
        scored: Tensor = density_of(fn).log_prob(targets)
        return scored

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        labels: PixelLabels = density_of(fn)
        sums: dict[str, Tensor] = {}
        for logits in labels.logits:  # float64 of one draw at a time
            probs = float64(PixelLabels(logits, labels.real, validate_args=False).probs)
            parts = {"mean": probs, "entropy": entropy(_both(probs) if labels.binary else probs)}
            sums = {name: sums[name] + value if sums else value for name, value in parts.items()}
        return sums

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        if self.classes > 1:
            return class_prediction(sums, num_samples)
        mean, aleatoric = sums["mean"] / num_samples, sums["entropy"] / num_samples
        return split(mean, entropy(_both(mean)), aleatoric, num_samples)

    def config(self) -> dict[str, Any]:
        return {
            "grid": list(self.grid),
            "size": list(self.size),
            "classes": self.classes,
            "skip": self.skip,
            "detail": self.detail,
            "unit": self.unit.value,
            "dice_weight": self.dice_weight,
        }


def _both(probs: Tensor) -> Tensor:
    """P(y = 1) as two classes; a pixel that is not real, with 0, has then no entropy."""
    return torch.stack([probs, 1 - probs], -1)


def _potential(labels: PixelLabels, weight: float, value: Integer[Tensor, "... H W"]) -> Float[Tensor, "..."]:
    """``v (1 − Dice(p, y))``, nats."""
    scored, probs = labels.scored(value), labels.probs
    if labels.binary:
        wanted = (value == 1) & scored
    else:
        classes = torch.arange(probs.shape[-1], device=value.device)
        wanted = (value[..., None] == classes) & scored[..., None]
        scored = scored[..., None]
    dims = (-2, -1) if labels.binary else (-3, -2)
    probs, sure = torch.where(scored, probs, 0.0), wanted.to(probs)
    dice = (2 * (probs * sure).sum(dims) + 1) / (probs.sum(dims) + sure.sum(dims) + 1)
    return weight * (1.0 - (dice if labels.binary else dice.mean(-1)))
