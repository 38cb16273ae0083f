"""A backbone of points, and Gaussian processes on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.heads.gaussian_process import GaussianProcessHead
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models import LoRA


class Points(nn.Module):
    """A backbone whose hidden states are its inputs, so that features are points that a test chooses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": width})()
        self.query = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            self.query.weight.copy_(torch.eye(width))

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.query(x)[:, None]})()


def on_points(points: Tensor, likelihood: Likelihood, num_inducing: int, **options: Any) -> LoRA:
    """A model of points, whose adapters do nothing as long as B = 0."""
    head = GaussianProcessHead(num_inducing, pooling="cls", **options)
    return LoRA(Points(points.shape[1]), likelihood, targets=["query"], rank=1, head=head, num_data=len(points))


def scattered(guide: Any) -> Any:
    """Move q(u) and the head's mean and scale away from where they start."""
    head, q = guide.model.head, guide.head_posterior.u
    with torch.no_grad():
        q.variational_mean.normal_()
        q.chol_variational_covar.copy_(torch.randn_like(q.chol_variational_covar) * 0.5)
        head.mean.raw_constant.normal_()
        head.kernel.raw_outputscale.normal_()
    return guide
