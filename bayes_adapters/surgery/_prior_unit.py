"""The Gaussian that stands for a model's prior where a posterior is made after training."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.inference.model import AdapterModel


def prior_unit(model: AdapterModel) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Return mean and standard deviation of every weight under the model's prior, on the CPU in float64.

    They are those of the prior, whatever its family; 0 and 1 where it has none, as a log-uniform one.
    """
    means: list[Tensor] = []
    deviations: list[Tensor] = []
    for site in model.sites:
        prior = model.prior.of(site)
        try:
            mean, deviation = prior.mean, prior.stddev
        except (NotImplementedError, AttributeError):
            mean, deviation = torch.zeros(()), torch.ones(())
        if not bool((mean.isfinite() & deviation.isfinite() & (deviation > 0)).all()):
            mean, deviation = torch.zeros(()), torch.ones(())
        means.append(float64(mean).cpu().expand(site.shape).flatten())
        deviations.append(float64(deviation).cpu().expand(site.shape).flatten())
    return torch.cat(means), torch.cat(deviations)
