"""One box in an image per example."""

from __future__ import annotations

import math
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.conditions import checked
from bayes_adapters.data.boxes import giou
from bayes_adapters.distributions.potential import WithPotential, density_of
from bayes_adapters.errors import choice, positive_number
from bayes_adapters.likelihoods._box_checks import require_boxes, require_potential
from bayes_adapters.likelihoods._splits import moment_prediction, moment_sums
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.prediction import Prediction

_LEAST = 1e-4
_ONE = math.log(math.e - 1)
"""softplus of it is 1."""


class Scale(StrEnum):
    """For what a box's scale b is one number."""

    ALL = "all"
    """One learned b for all four coordinates of all boxes."""
    COORDINATE = "coordinate"
    """Four learned b."""
    EXAMPLE = "example"
    """The head says four b for every example: ``b_k = 1e-4 + init_scale · softplus(f_{4+k} + softplus⁻¹(1))``."""


class BoundingBox(Likelihood):
    """``y_k ~ Laplace(sigmoid(f_k), b_k)`` for the four numbers of a box, independent given the outputs.

    Targets: floating point of shape (B, 4), each box (cx, cy, w, h) in shares of the image: see
    :mod:`bayes_adapters.data.boxes`, whose ``from_corners`` makes them of pixels. The box lies in the image, and its
    sides are positive.

    Density, with m = sigmoid(f_1…4): ``log p(y | f) = − Σ_k [ |y_k − m_k| / b_k + log 2 b_k ]``, over all of R⁴: an L1
    loss whose weights 1 / b_k are learned. Its mass on what is no box in the image is not cut off; b is small beside 1.

    **The GIoU term** is no part of that density. With ``giou_weight = w`` the ELBO scores
    ``log p(y | f) − w (1 − GIoU(m, y))``: the Gibbs potential ``exp(−w (1 − GIoU))`` of a generalised posterior, which
    knows that four small errors can be a bad box. As the weights of :class:`Tasks` do, it acts in training only:
    ``log_density`` of a prediction is that of p, and draws are from p. The published loss ``λ (L1 + 1 − GIoU)`` of
    detection and grounding is w = λ with b = 1 / λ; here L1 comes to count the more, the smaller b becomes.

    Prediction: ``mean`` (B, 4) is the mean box, whose corners are the means of the draws' corners; variances, and
    entropies in nats, are each coordinate's own, (B, 4): 2 b² and 1 + log 2b of a draw, total that of a Laplace with
    the variance of the mixture, exact for S = 1. :meth:`Prediction.summed` adds up. ``log_density`` is joint.

    |y − m| has no curvature, so ``surgery.laplace``, which reads that of the loss, says nothing of use here; for it
    take :class:`MultiGaussian` of four numbers.

    Args:
        scale: for what b is one number: ``coordinate``, ``all``, or ``example``, with eight outputs in place of four.
        init_scale: b at the start, a share of the image.
        giou_weight: w ≥ 0, nats; 0 leaves the likelihood as it is.

    Source: L1 and GIoU for boxes, Carion et al. 2020 (DETR), arXiv 2005.12872; potentials, Bissiri, Holmes and Walker
    2016, arXiv 1306.6430.

    >>> likelihood = BoundingBox(init_scale=0.5, giou_weight=2.0)
    >>> fn, box = likelihood.distribution(torch.zeros(1, 1, 4)), torch.tensor([[0.5, 0.5, 0.5, 0.25]])
    >>> round(float(likelihood.log_density(fn, box).detach()), 4)  # 2b = 1, and one coordinate is .25 off
    -0.5
    >>> round(float(fn.log_prob(box).detach()), 4)  # of the ELBO: the boxes overlap by a half
    -1.5
    """

    name: ClassVar[str] = "bounding_box"
    smooth: ClassVar[bool] = False

    def __init__(
        self, scale: Scale | str = Scale.COORDINATE, *, init_scale: float = 0.1, giou_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.scale = choice(Scale, "scale", scale)
        positive_number("init_scale", init_scale)
        require_potential("giou_weight", giou_weight)
        self.init_scale, self.giou_weight = float(init_scale), float(giou_weight)
        self.num_outputs = 8 if self.scale is Scale.EXAMPLE else 4
        if self.scale is not Scale.EXAMPLE:
            count = 1 if self.scale is Scale.ALL else 4
            self.log_scale = nn.Parameter(torch.full((count,), math.log(init_scale)))

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        outputs = outputs.float()
        loc = torch.sigmoid(outputs[..., :4])
        if self.scale is Scale.EXAMPLE:
            scale = _LEAST + self.init_scale * F.softplus(outputs[..., 4:] + _ONE)
        else:
            scale = self.log_scale.exp().expand_as(loc)
        density = checked(dist.Laplace, loc=loc, scale=scale).to_event(1)
        potential = partial(_potential, loc, self.giou_weight) if self.giou_weight else None
        return WithPotential(density, potential, validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_boxes(targets)

    def log_density(self, fn: Any, targets: Any) -> Float[Tensor, "S B"]:
        scored: Tensor = density_of(fn).log_prob(targets)
        return scored

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        each = density_of(fn).base_dist
        return moment_sums(each.mean, each.variance, each.entropy())

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        return moment_prediction(sums, num_samples)

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale.value, "init_scale": self.init_scale, "giou_weight": self.giou_weight}


def _potential(mean: Float[Tensor, "... 4"], weight: float, boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """``w (1 − GIoU(m, y))``, nats."""
    return weight * (1.0 - giou(mean, boxes))
