"""What guides refuse of the model they are built for, and the loss of their posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, described
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.priors import HyperSite


def require_model(guide: object, model: object) -> None:
    """Raise :class:`ConfigError` unless ``guide`` is built for a model."""
    if not isinstance(model, AdapterModel):
        raise ConfigError(
            f"{type(guide).__name__} is built for a model such as StochasticCore(backbone, likelihood); got "
            f"{described(model)}."
        )


def require_sites(guide: Any, model: AdapterModel) -> None:
    """Raise :class:`ConfigError` if ``guide`` needs a random part and ``model`` has none."""
    if guide.needs_sites and not model.sites:
        raise ConfigError(
            f"{type(guide).__name__} has nothing to infer: nothing in this {type(model).__name__} is random. Take a "
            "model with random cores, such as StochasticCore, or the guide Delta (maximum likelihood)."
        )


def require_hyper_served(guide: Any, hyper: Sequence[HyperSite]) -> None:
    """Raise :class:`ConfigError` if the prior has hyper-parameters and ``guide`` does not infer any."""
    if hyper and not guide.serves_hyper:
        raise ConfigError(
            f"{type(guide).__name__} infers no hyper-parameters, and the prior has {hyper[0].name!r}. Take a guide "
            "that does, such as MeanField, or a prior with constant parameters."
        )


def require_gradient(name: str, guide_site: Any) -> None:
    """Raise :class:`ConfigError` if the likelihood would have no gradient for the parameters of a posterior."""
    q = guide_site["fn"]
    if not q.has_rsample and q.log_prob(guide_site["value"].detach()).requires_grad:
        raise ConfigError(
            f"The posterior {type(base_distribution(q)).__name__} of {name!r} has parameters to train and its draws "
            "are not reparametrised (no rsample), so that the expected log-likelihood would have no gradient for "
            "them. Take a family that has, such as Normal, or train with pyro.infer.SVI and Trace_ELBO, which scores "
            "draws."
        )
