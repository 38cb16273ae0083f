"""What guides refuse of the model they are built for and of themselves, and the loss of their posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from bayes_adapters.backbones.causality import is_causal
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, described
from bayes_adapters.inference._pyro import is_traced
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.priors import HyperSite
from bayes_adapters.sites import REAL, Granularity, Part, Site


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
        what = "nothing in this"
        if model.head_sites:
            what = f"the {type(model.head).__name__} brings the posterior of its own weights, and nothing else in this"
        raise ConfigError(
            f"{type(guide).__name__} has nothing to infer: {what} {type(model).__name__} is random. Take a model with "
            "random cores, such as StochasticCore, or the guide Delta (maximum likelihood)."
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


def require_served(guide: Any, site: Site, prior: TorchDistributionMixin) -> None:
    """Raise :class:`ConfigError` unless ``guide`` can infer ``site`` under ``prior``."""
    kind = type(guide).__name__
    if site.granularity not in guide.serves:
        raise ConfigError(
            f"{kind} cannot infer {site.name!r}, which is {site.granularity.value}; it serves "
            f"{', '.join(sorted(g.value for g in guide.serves))}. "
            + _INFERS.get(
                site.part,
                "Build the model with another granularity=, or take a guide that serves it (MeanField and Delta serve "
                "all).",
            )
        )
    if site.part not in guide.parts:
        raise ConfigError(
            f"{kind} cannot infer {site.name!r}, which is a {site.part.value}; it serves "
            f"{', '.join(sorted(part.value for part in guide.parts))}. "
            + _INFERS.get(site.part, "MeanField and Delta serve every real-valued part.")
        )
    if guide.all_reals and site.part in REAL and not _covers_reals(prior):
        raise ConfigError(
            f"The prior {type(base_distribution(prior)).__name__} of {site.name!r} does not allow all real numbers and "
            f"the posterior of {kind} does, so that their KL is infinite. Take a prior on all reals, such as Normal, "
            "Laplace or StudentT, or, where it is continuous, the guide Delta."
        )


_INFERS = {
    Part.MASK: "It is discrete, and has no density: a keep mask is inferred by MCDropout.",
    Part.GATE: "It is discrete, and has no density: gates are inferred by RankGates.",
}


def require_no_look_ahead(guide: Any, site: Site, model: Any) -> None:
    """Refuse a posterior that would tell the tokens of a causal backbone what comes after them."""
    looks = guide.reads_features and site.granularity is Granularity.SEQUENCE
    if looks and model.likelihood.per_token and is_causal(model.backbone):
        raise ConfigError(
            f"{type(guide).__name__} would look ahead: the draw of {site.name!r} depends on the mean over all tokens"
            f" of a sequence, later ones too, and the tokens of {type(model.backbone).__name__}, each with its own "
            "target, see earlier ones only. Take granularity='token' or 'global', or the guide MeanField, "
            "whose posterior does not depend on the input."
        )


def require_wide(guide: nn.Module) -> None:
    """Raise :class:`ConfigError` if ``guide`` has half-precision parameters, as after a cast together with its model.

    bfloat16 has 8 bits of mantissa: an update below 1/256 of an entry is rounded away, and so is nearly every one.
    """
    for name, p in guide.named_parameters():
        if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"This {type(guide).__name__} is {p.dtype}; posteriors are float32 whatever the backbone is, for most "
                f"updates of {name!r} would be rounded to nothing. Call guide.float(), and cast the model alone."
            )


def _covers_reals(prior: TorchDistributionMixin) -> bool:
    base = base_distribution(prior)
    far = torch.full(base.event_shape, 1e6)  # one number where entries are independent: it fits bounds on any device
    support: Any = base.support
    return all(bool(support.check(value).all()) for value in (far, -far))


def require_posterior(guide: object, site: Site, posterior: Any, shape: tuple[int, ...]) -> None:
    """Raise :class:`ConfigError` unless ``guide.posterior`` returned a Pyro distribution over one draw of ``site``."""
    kind = type(guide).__name__
    if not isinstance(posterior, TorchDistributionMixin):
        raise ConfigError(
            f"{kind}.posterior() must return a distribution from pyro.distributions; for {site.name!r} it returned a "
            f"{type(posterior).__module__}.{type(posterior).__name__}. For a point estimate that is "
            "pyro.distributions.Delta(value, event_dim=len(call.site.event))."
        )
    batch = tuple(posterior.batch_shape)
    fits = len(batch) <= len(shape) and all(b in (1, s) for b, s in zip(batch[::-1], shape[::-1], strict=False))
    if tuple(posterior.event_shape) != site.event or not fits:
        raise ConfigError(
            f"{kind}.posterior() must return a distribution of event shape {site.event}, for one draw of "
            f"{site.name!r}, whose batch shape broadcasts to {shape}; it returned event shape "
            f"{tuple(posterior.event_shape)} and batch shape {batch}. End it with .to_event(len(call.site.event))."
        )


def require_untraced(head: object) -> None:
    """Raise :class:`ConfigError` within a trace, which would score the mean of a head's weights as a draw of them."""
    if is_traced():
        raise ConfigError(
            f"The weights of the {type(head).__name__} are integrated out, and the run was traced, as Pyro's SVI and "
            "its ELBOs do: they would take the mean for a draw. Train with bayes_adapters.ELBO or fit(), take the head "
            "BayesianLinear, whose weights are drawn, or use a guide of Pyro's, such as AutoNormal."
        )
