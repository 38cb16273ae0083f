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

from bayes_adapters.distributions import mean_of
from bayes_adapters.inference._guide_checks import (
    require_hyper_served,
    require_model,
    require_no_look_ahead,
    require_posterior,
    require_served,
    require_sites,
    require_untraced,
    require_wide,
)
from bayes_adapters.inference._hyper import HyperPosterior
from bayes_adapters.inference._pyro import register_if_captured, untrace
from bayes_adapters.inference.divergence import SAME, summarised
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.priors import SINGLE_PRIOR
from bayes_adapters.sites import SITE, Granularity, Part, Site, SiteCall


class AdapterGuide(GuideMessenger, nn.Module):
    """Base of all guides.

    A subclass has, in this order: ``name``, ``serves``, ``parts``, ``__init__``, ``posterior``, ``config``.

    ``predict`` draws a posterior's entries by its inverse CDF, so they are a function of the seed; a family without one
    is drawn with ``seed=None``. ``mean_only`` and ``to_lora`` ask for its mean. Options that ``config`` returns are
    given back to the constructor when an adapter is loaded. The sites of ``model.sites`` are the guide's to infer.
    Where the head brings a posterior of its own weights, ``head_posterior`` holds it, and a subclass has nothing to do.

    Args:
        model: the model whose sites the guide infers. It is not registered as a submodule.

    Raises:
        ConfigError: the model has a site this guide cannot serve, or none at all.

    >>> import pyro.distributions as dist, torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import ELBO, Batch, Bernoulli, models
    >>> class Narrow(AdapterGuide):
    ...     name, serves = "narrow", frozenset({Granularity.TOKEN})
    ...     def __init__(self, model):
    ...         super().__init__(model)
    ...         self.loc = nn.ParameterDict({site_key(s): nn.Parameter(model.start(s)) for s in model.sites})
    ...     def posterior(self, call, prior):
    ...         return dist.Normal(self.loc[site_key(call.site)], 0.01).to_event(2)
    ...     def config(self):
    ...         return {}
    >>> net = BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> model = models.StochasticCore(net, Bernoulli(), rank=2)
    >>> batch = Batch({"input_ids": torch.randint(50, (3, 5))}, targets=torch.ones(3))
    >>> ELBO(model, Narrow(model))(batch).requires_grad
    True
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
    recipe: Any = None
    """How the published system that this guide was built for was trained, a :class:`bayes_adapters.systems.Recipe`:
    the defaults of ``fit``. None for a guide that was built by itself, or loaded."""
    posterior_temperature: float = 1.0
    """τ of :func:`bayes_adapters.predict` where that is given none: chosen on validation data, by
    :func:`bayes_adapters.training.tune` or by hand, and saved with the adapter. The training loss and ``guide(batch)``
    are those of q itself, τ = 1."""
    serves_hyper: ClassVar[bool] = False
    """Whether hyper-parameters of the prior are inferred too, by a Gaussian each on the unconstrained space."""

    def __init__(self, model: AdapterModel) -> None:
        require_model(self, model)
        nn.Module.__init__(self)
        GuideMessenger.__init__(self, model)
        require_sites(self, model)
        for site in model.sites:
            require_served(self, site, model.prior.of(site))
            require_no_look_ahead(self, site, model)
        hyper, device = model.prior.hyper_sites, next(model.parameters()).device
        require_hyper_served(self, hyper)
        self.hyper = HyperPosterior(hyper, device) if hyper else None
        own = model.head.posterior(model.head_sites, model.likelihood) if model.head_sites else None
        self.head_posterior = None if own is None else own.to(device).float()

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

    def is_of_head(self, site: Site) -> bool:
        """Whether the model's head brings the posterior of ``site``, so that this guide does not infer it."""
        return site in self.model.head_sites  # type: ignore[attr-defined]

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
        head = self.head_posterior if self.is_of_head(call.site) else None
        single = self.posterior(call, msg["infer"][SINGLE_PRIOR]) if head is None else head(call)
        call.posterior = None if head is None else single
        shape = _batch_shape(call)
        require_posterior(self, call.site, single, shape)
        msg["infer"][SAME] = single is msg["infer"][SINGLE_PRIOR]
        single = single if single.batch_shape == shape else single.expand(shape)
        flipped = call.site.part == Part.A and self.model.flipout  # type: ignore[attr-defined]
        if call.feature is None and (flipped or call.scale is not None):
            call.mean = mean_of(single, call.site.name)
        posterior = call.site.wrap(single, call.token_mask)
        msg["infer"]["prior"] = prior
        msg["fn"] = posterior if posterior.batch_shape == prior.batch_shape else posterior.expand(prior.batch_shape)
        if call.moments is not None and msg["value"] is None:
            require_untraced(self.model.head)  # type: ignore[attr-defined]
            msg["value"] = call.point = msg["fn"].mean

    def _pyro_post_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        if call is not None and msg["is_observed"]:
            call.posterior = None  # a handler around the guide has given the value
        elif call is not None and call.summary is not None:
            msg = summarised(msg)
        super()._pyro_post_sample(msg)


def _batch_shape(call: SiteCall) -> tuple[int, ...]:
    return (len(call.site.layers),) if call.feature is None else tuple(call.feature.shape[:-1])


def site_key(site: Site) -> str:
    """A site's name as a key of ``nn.ModuleDict`` or ``nn.ParameterDict``, which allow no dots."""
    return site.name.replace(".", "-")
