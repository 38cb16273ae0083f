"""A variational last layer on fixed features, its posterior by hand, and conjugate regression."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import (
    AdapterGuide,
    AdapterModel,
    Batch,
    Categorical,
    Gaussian,
)
from bayes_adapters.guides import Delta
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.models import LoRA
from tests.helpers import Linear, bert, fill_B

N = 50
CLASSES = torch.tensor([0, 1, 2, 1, 0])
COVARIANCES = ["diagonal", "low_rank", "dense"]


def last_layer(likelihood: Any = None, **options: Any) -> tuple[AdapterModel, AdapterGuide]:
    """A trained-looking LoRA whose head has a wide posterior."""
    torch.manual_seed(2)
    head = VariationalLastLayer(**({"init_scale": 1.0, "pooling": "cls"} | options))
    model = fill_B(LoRA(bert(), likelihood or Categorical(3), head=head, num_data=N))
    guide = Delta(model)
    with torch.no_grad():
        for name, value in guide.head_posterior.named_parameters():  # type: ignore[union-attr]
            if name.endswith(("factor", "lower")):
                value.normal_(0.0, 0.1)
    return model, guide


def phi(model: AdapterModel, batch: Batch) -> Tensor:
    hidden: Tensor = model.backbone(**batch.inputs).last_hidden_state[:, 0].detach()
    return torch.cat([hidden, hidden.new_full((len(hidden), 1), math.sqrt(hidden.shape[1]))], 1)


def posterior(guide: AdapterGuide) -> tuple[Tensor, Tensor]:
    """M, shape (K, D), and S, shape (K, D, D), by hand from the parameters."""
    values = {name.rsplit(".", 1)[-1]: value.detach() for name, value in guide.head_posterior.named_parameters()}  # type: ignore[union-attr]
    scale = values["log_scale"][0].exp()
    if "lower" in values:
        lower = values["lower"][0].tril(-1) + torch.diag_embed(scale)
        return values["loc"][0], lower @ lower.mT
    low = values["factor"][0] @ values["factor"][0].mT if "factor" in values else 0.0
    return values["loc"][0], torch.diag_embed(scale.square()) + low


def noise(guide: AdapterGuide) -> Tensor:
    return dict(guide.named_parameters())["head_posterior.log_noise"][0].exp().detach()


def regression(**options: Any) -> tuple[AdapterModel, AdapterGuide, Batch, Tensor]:
    """Fixed features of one linear layer, 20 targets, everything in double precision."""
    torch.manual_seed(4)
    head = VariationalLastLayer(**({"covariance": "dense", "prior_scale": 1.5, "noise_prior": None} | options))
    model = LoRA(Linear(), Gaussian(math.log(0.5)), targets=["query"], rank=1, head=head, num_data=20).double()
    batch = Batch({"x": torch.randn(20, 2, 4).double()}, torch.randn(20).double())
    for p in model.parameters():
        p.requires_grad_(False)
    hidden = model.backbone(**batch.inputs).last_hidden_state.mean(1)
    features = torch.cat([hidden, hidden.new_full((20, 1), math.sqrt(3.0))], 1).detach()
    return model, Delta(model).double(), batch, features


def conjugate(features: Tensor, targets: Tensor, sigma2: float, s2: float = 1.5**2 / 3) -> tuple[Tensor, Tensor]:
    cov = torch.linalg.inv(torch.eye(features.shape[1]).double() / s2 + features.T @ features / sigma2)
    return cov @ features.T @ targets / sigma2, cov


def put(guide: AdapterGuide, mean: Tensor, cov: Tensor) -> None:
    lower = torch.linalg.cholesky(cov)
    with torch.no_grad():
        values = dict(guide.named_parameters())
        values["head_posterior.weight.loc"][0, 0] = mean
        values["head_posterior.weight.log_scale"][0, 0] = lower.diagonal().log()
        values["head_posterior.weight.lower"][0, 0] = lower.tril(-1)
