"""What every guide is: an effect-based Pyro guide that sees each core's prior and call, and returns its posterior.

Model and guide share one pass through the backbone: running ``guide(batch)`` runs the model and replaces, at each
core site, the prior by the posterior. Guides are ordinary modules whose parameters exist at construction.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.guide import GuideMessenger
from torch import Tensor, nn

from bayes_adapters.backbones.causality import is_causal
from bayes_adapters.distributions import base_distribution, mean_of
from bayes_adapters.errors import ConfigError, described
from bayes_adapters.inference._hyper import HyperPosterior
from bayes_adapters.inference._pyro import register_if_captured, untrace
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.priors import SINGLE_PRIOR
from bayes_adapters.sites import REAL, SITE, Granularity, Part, Site, SiteCall

SAME = "posterior_is_prior"
"""The key of whether a site's posterior is its prior itself, in a sample statement's ``infer`` dictionary."""


class AdapterGuide(GuideMessenger, nn.Module):
    """Base of all guides.

    A subclass has, in this order: ``name``, ``serves``, ``parts``, ``__init__``, ``posterior``, ``config``.

    Args:
        model: the model whose sites the guide infers. It is not registered as a submodule.

    Raises:
        ConfigError: the model has a site this guide cannot serve, or none at all.
    """

    name: ClassVar[str]
    """The registered name, as written into saved adapters."""
    serves: ClassVar[frozenset[Granularity]]
    """The granularities this guide can infer."""
    parts: ClassVar[frozenset[Part]] = frozenset({Part.CORE})
    """The parts of an adapter this guide can infer."""
    all_reals: ClassVar[bool] = True
    """Whether the posterior of a real-valued part has density everywhere, as a Gaussian's has; a prior without is then
    refused, for the KL would be infinite. False for point estimates, and where the posterior keeps to a smaller set."""
    reads_features: ClassVar[bool] = False
    """Whether the posterior depends on the feature of its call, which of a sequence site is a mean over all tokens."""
    needs_sites: ClassVar[bool] = True
    """Whether a model without random parts is refused; False only where that means maximum likelihood."""
    serves_hyper: ClassVar[bool] = False
    """Whether hyper-parameters of the prior are inferred too, by a Gaussian each on the unconstrained space."""

    def __init__(self, model: AdapterModel) -> None:
        if not isinstance(model, AdapterModel):
            raise ConfigError(
                f"{type(self).__name__} is built for a model such as StochasticCore(backbone, likelihood); got "
                f"{described(model)}."
            )
        nn.Module.__init__(self)
        GuideMessenger.__init__(self, model)
        if self.needs_sites and not model.sites:
            raise ConfigError(
                f"{type(self).__name__} has nothing to infer: nothing in this {type(model).__name__} is random. Take a "
                "model with random cores, such as StochasticCore, or the guide Delta (maximum likelihood)."
            )
        for site in model.sites:
            self._require_served(site)
        hyper, device = model.prior.hyper_sites, next(model.parameters()).device
        if hyper and not self.serves_hyper:
            raise ConfigError(
                f"{type(self).__name__} infers no hyper-parameters, and the prior has {hyper[0].name!r}. Take a guide "
                "that does, such as MeanField, or a prior with constant parameters."
            )
        self.hyper = HyperPosterior(hyper, device) if hyper else None

    def _require_served(self, site: Site) -> None:
        if site.granularity not in self.serves:
            raise ConfigError(
                f"{type(self).__name__} cannot infer {site.name!r}, which is {site.granularity.value}; it serves "
                f"{', '.join(sorted(g.value for g in self.serves))}. Build the model with another granularity=, or "
                "take a guide that serves it (MeanField and Delta serve all)."
            )
        if site.part not in self.parts:
            raise ConfigError(
                f"{type(self).__name__} cannot infer {site.name!r}, which is a {site.part.value}; it serves "
                f"{', '.join(sorted(part.value for part in self.parts))}. "
                + (
                    "A keep mask is inferred by MCDropout."
                    if site.part is Part.MASK
                    else "MeanField and Delta serve every real-valued part."
                )
            )
        self._require_no_look_ahead(site)
        prior = self.model.prior.of(site)  # type: ignore[attr-defined]
        if self.all_reals and site.part in REAL and not _covers_reals(prior):
            raise ConfigError(
                f"The prior {type(base_distribution(prior)).__name__} of {site.name!r} does not allow all real numbers "
                f"and the posterior of {type(self).__name__} does, so that their KL is infinite. Take a prior on all "
                "reals, such as Normal, Laplace or StudentT, or, where it is continuous, the guide Delta."
            )

    def _require_no_look_ahead(self, site: Site) -> None:
        """Refuse a posterior that would tell the tokens of a causal backbone what comes after them."""
        model: Any = self.model
        looks = self.reads_features and site.granularity is Granularity.SEQUENCE
        if looks and model.likelihood.per_token and is_causal(model.backbone):
            raise ConfigError(
                f"{type(self).__name__} would look ahead: the draw of {site.name!r} depends on the mean over all tokens"
                f" of a sequence, later ones too, and the tokens of {type(model.backbone).__name__}, each with its own "
                "target, see earlier ones only. Take granularity='token' or 'global', or the guide MeanField, "
                "whose posterior does not depend on the input."
            )

    @property
    def deterministic(self) -> bool:
        """Whether every posterior is a point, so that one pass tells what any number of draws would."""
        return False

    @property
    def reads(self) -> frozenset[str]:
        """Keys of ``Batch.context`` that the posterior looks at."""
        return frozenset()

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Return q over the draws of one site.

        Args:
            call: the site, its feature (*S, B, T, r), masks and context.
            prior: the prior of one draw, event shape ``call.site.event``.

        Returns:
            A distribution of that event shape whose batch shape broadcasts to (L,) for a global site, (*S, B, T) for
            a token and (*S, B, 1) for a sequence site; its parameters are float32.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Constructor arguments other than the model, as JSON."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Run the model under the guide; return every sample site's value.

        A trace around the guide, such as that of ``pyro.infer.Importance``, records the draws and not the observed
        targets: their density is the model's.
        """
        if torch.is_grad_enabled():
            require_wide(self)
        register_if_captured("guide", self)
        samples: dict[str, Tensor] = super().__call__(*args, **kwargs)
        nodes: dict[str, Any] = self.trace.nodes
        sampled = [name for name, node in nodes.items() if node["type"] == "sample" and SITE not in node["infer"]]
        untrace([name for name in sampled if nodes[name]["is_observed"]])
        return samples

    def get_posterior(self, name: str, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Return q of a prior's hyper-parameter; other sites that are not an adapter's stay with their prior."""
        return prior if self.hyper is None or name not in self.hyper.sites else self.hyper.posterior(name)

    def _pyro_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        if call is None or msg["is_observed"]:
            super()._pyro_sample(msg)
            return
        prior = msg["fn"]
        single = self.posterior(call, msg["infer"][SINGLE_PRIOR])
        shape = _batch_shape(call)
        self._check_posterior(call.site, single, shape)
        msg["infer"][SAME] = single is msg["infer"][SINGLE_PRIOR]
        single = single if single.batch_shape == shape else single.expand(shape)
        flipped = call.site.part is Part.A and self.model.flipout  # type: ignore[attr-defined]
        if call.feature is None and (flipped or call.scale is not None):
            call.mean = mean_of(single, call.site.name)
        posterior = call.site.wrap(single, call.token_mask)
        msg["infer"]["prior"] = prior
        msg["fn"] = posterior if posterior.batch_shape == prior.batch_shape else posterior.expand(prior.batch_shape)

    def _check_posterior(self, site: Site, posterior: Any, shape: tuple[int, ...]) -> None:
        """Raise :class:`ConfigError` unless :meth:`posterior` returned a Pyro distribution over one draw."""
        if not isinstance(posterior, TorchDistributionMixin):
            raise ConfigError(
                f"{type(self).__name__}.posterior() must return a distribution from pyro.distributions; for "
                f"{site.name!r} it returned a {type(posterior).__module__}.{type(posterior).__name__}. For a point "
                "estimate that is pyro.distributions.Delta(value, event_dim=len(call.site.event))."
            )
        batch = tuple(posterior.batch_shape)
        fits = len(batch) <= len(shape) and all(b in (1, s) for b, s in zip(batch[::-1], shape[::-1], strict=False))
        if tuple(posterior.event_shape) != site.event or not fits:
            raise ConfigError(
                f"{type(self).__name__}.posterior() must return a distribution of event shape {site.event}, for one "
                f"draw of {site.name!r}, whose batch shape broadcasts to {shape}; it returned event shape "
                f"{tuple(posterior.event_shape)} and batch shape {batch}. End it with .to_event(len(call.site.event))."
            )


def require_pair(model: AdapterModel, guide: AdapterGuide) -> None:
    """Raise :class:`ConfigError` unless ``guide`` was built for ``model`` and its adapters are still installed."""
    if not isinstance(model, AdapterModel) or not isinstance(guide, AdapterGuide):
        raise ConfigError(
            "A model such as StochasticCore(backbone, likelihood) and the guide built for it are needed, in this "
            f"order; got {described(model)} and {described(guide)}."
        )
    if guide.model is not model:
        raise ConfigError("The guide was built for another model; build it with this one: guide = Guide(model).")
    model.require_installed()


def require_one_device(model: AdapterModel, guide: AdapterGuide) -> None:
    """Raise :class:`ConfigError` unless the guide's parameters and buffers are where the model's parameters are."""
    device = next(model.parameters()).device
    for name, tensor in [*guide.named_parameters(), *guide.named_buffers()]:
        if tensor.device != device:
            raise ConfigError(
                f"The model is on {device} and the guide's {name!r} on {tensor.device}. Call "
                f"guide.to({str(device)!r}), and make an optimizer only after that."
            )


def require_wide(guide: AdapterGuide) -> None:
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


def _batch_shape(call: SiteCall) -> tuple[int, ...]:
    return (len(call.site.layers),) if call.feature is None else tuple(call.feature.shape[:-1])


def site_key(site: Site) -> str:
    """A site's name as a key of ``nn.ModuleDict`` or ``nn.ParameterDict``, which allow no dots."""
    return site.name.replace(".", "-")
