"""One of several ordered classes per example, such as a rating."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.conditions import checked
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods._checks import require_class_numbers
from bayes_adapters.likelihoods.base import Likelihood


class Ordinal(Likelihood):
    """``P(y ≤ k) = sigmoid(c_k − f)``: the cumulative logit (proportional odds) model with C − 1 learned cut points.

    Density, with c_{−1} = −∞ and c_{C−1} = ∞::

        p(y = k | f) = sigmoid(c_k − f) − sigmoid(c_{k−1} − f)
                     = sigmoid(c_k − f) · sigmoid(f − c_{k−1}) · (1 − exp(c_{k−1} − c_k))

    computed in the second form, which does not cancel. A larger f means a higher class. The cut points are
    ``c_0 = first`` and ``c_k = c_{k−1} + exp(log_gaps_{k−1})``, so they stay ordered; at the start every class has the
    same probability at f = 0. Predictions are class probabilities, as those of :class:`Categorical`.

    Args:
        num_classes: C ≥ 2. Targets are int64 in 0 … C − 1.

    Source: McCullagh 1980, doi 10.1111/j.2517-6161.1980.tb01109.x.

    >>> Ordinal(4).distribution(torch.zeros(1, 1)).probs.detach()
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    name: ClassVar[str] = "ordinal"
    num_outputs = 1
    bounded: ClassVar[bool] = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
            raise ConfigError(f"num_classes must be a whole number of at least 2; got {num_classes}.")
        self.num_classes = num_classes
        cuts = torch.logit(torch.arange(1, num_classes) / num_classes)
        self.first = nn.Parameter(cuts[:1].clone())
        self.log_gaps = nn.Parameter(cuts.diff().log())

    @property
    def cut_points(self) -> Float[Tensor, " cuts"]:
        """c_0 < … < c_{C−2}, shape (C − 1,)."""
        return torch.cat([self.first, self.first + self.log_gaps.exp().cumsum(0)])

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        above = self.cut_points - outputs[..., :1].float()
        below, inside = F.logsigmoid(above), F.logsigmoid(-above)
        nothing = torch.zeros_like(above[..., :1])
        # log(1 − exp(−gap)); of the first and the last class the outer cut point is at infinity
        gaps = torch.log(-torch.expm1(-self.log_gaps.exp())).expand(*above.shape[:-1], -1)
        log_probs = torch.cat([below, nothing], -1) + torch.cat([nothing, inside], -1)
        return checked(dist.Categorical, logits=log_probs + torch.cat([nothing, gaps, nothing], -1))

    def check(self, targets: Tensor) -> None:
        require_class_numbers(targets, self.num_classes)

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}
