"""``PixelLabels``: the classes of an image's pixels, some of which have none."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from bayes_adapters.distributions.token_labels import IGNORED


class PixelLabels(TorchDistribution):
    """One class for every pixel of an image; given the outputs, pixels are independent.

    Density: ``log p(y) = Σ_p [pixel p is real, y_p ≠ −100] log p(y_p)``, with p(y_p = 1) = sigmoid(f_p) for one logit
    per pixel and softmax(f_p) for C of them. A pixel whose label is −100 (:data:`IGNORED`) is summed over, not scored.
    Draws have −100 at pixels that are not real.

    Args:
        logits: f, shape (*batch, H, W, C); C = 1 for yes or no.
        real: shape (*batch, H, W) or broadcastable to it, False where a pixel is padding; None where none is.

    >>> labels = PixelLabels(torch.zeros(1, 2, 2, 1))
    >>> labels.log_prob(torch.tensor([[[1, 0], [-100, 1]]])).exp()
    tensor([0.1250])
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 3)}
    support = constraints.independent(constraints.integer_interval(IGNORED, 2**31 - 1), 2)

    def __init__(
        self,
        logits: Float[Tensor, "*batch H W C"],
        real: Bool[Tensor, "... H W"] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.real = logits, real
        super().__init__(logits.shape[:-3], logits.shape[-3:-1], validate_args=validate_args)

    @property
    def binary(self) -> bool:
        """Whether there is one logit per pixel."""
        return self.logits.shape[-1] == 1

    @property
    def probs(self) -> Float[Tensor, "*batch H W"] | Float[Tensor, "*batch H W C"]:
        """P(y = 1) of each pixel, or its class probabilities with C behind; zero where a pixel is not real."""
        probs = torch.sigmoid(self.logits[..., 0]) if self.binary else self.logits.softmax(-1)
        if self.real is None:
            return probs
        return probs * (self.real if self.binary else self.real[..., None])

    @property
    def mean(self) -> Tensor:
        """``probs``."""
        return self.probs

    def expand(self, batch_shape: Any, _instance: Any = None) -> PixelLabels:
        """Return the same labels with another batch shape."""
        logits = self.logits.expand(torch.Size(batch_shape) + self.logits.shape[-3:])
        return PixelLabels(logits, self.real, validate_args=False)

    def scored(self, value: Integer[Tensor, "... H W"]) -> Bool[Tensor, "... H W"]:
        """Return which pixels are real and labelled."""
        known = value.long() != IGNORED  # of uint8, -100 would be 156
        return known if self.real is None else known & self.real

    def count(self, value: Integer[Tensor, "... H W"]) -> Float[Tensor, "..."]:
        """Return how many pixels are scored, shape (…), as floating point."""
        return self.scored(value).sum((-2, -1)).to(self.logits)

    def log_prob(self, value: Integer[Tensor, "... H W"]) -> Float[Tensor, "..."]:
        """Return the log density of the labels ``value``, shape = batch shape."""
        scored = self.scored(value)
        value = torch.where(scored, value, 0).long()
        if self.binary:
            f = self.logits[..., 0]
            each = F.logsigmoid(torch.where(value == 1, f, -f))
        else:
            logs = self.logits.log_softmax(-1)
            index = value.expand(*torch.broadcast_shapes(value.shape, logs.shape[:-1]))[..., None]
            each = logs.expand(*index.shape[:-1], -1).gather(-1, index)[..., 0]
        return torch.where(scored, each, 0.0).sum((-2, -1))

    def sample(self, sample_shape: Any = None) -> Int[Tensor, "... H W"]:
        """Draw labels, −100 at pixels that are not real."""
        shape = torch.Size(sample_shape or ())
        if self.binary:
            drawn = torch.distributions.Bernoulli(logits=self.logits[..., 0]).sample(shape).long()
        else:
            drawn = torch.distributions.Categorical(logits=self.logits).sample(shape)
        return drawn if self.real is None else torch.where(self.real, drawn, IGNORED)
