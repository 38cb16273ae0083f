"""What every guide is: an effect-based Pyro guide that sees each core's prior and call, and returns its posterior.

Model and guide share one pass through the backbone: running ``guide(batch)`` runs the model and replaces, at each
core site, the prior by the posterior. Guides are ordinary modules whose parameters exist at construction.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.guide import GuideMessenger
from torch import Tensor, nn

from bayes_adapters._pyro import register_if_captured
from bayes_adapters.errors import ConfigError
from bayes_adapters.model import AdapterModel
from bayes_adapters.sites import CORE, CoreCall, CoreSite, Granularity


class AdapterGuide(GuideMessenger, nn.Module):
    """Base of all guides. A subclass has, in this order: ``name``, ``serves``, ``__init__``, ``posterior``, ``config``.

    Args:
        model: the model whose core sites the guide infers. It is not registered as a submodule.

    Raises:
        ConfigError: the model has a site this guide cannot serve, or none at all.
    """

    name: ClassVar[str]
    """The registered name, as written into saved adapters."""
    serves: ClassVar[frozenset[Granularity]]
    """The granularities this guide can infer."""
    needs_sites: ClassVar[bool] = True
    """Whether a model without random cores is refused; False only where that means maximum likelihood."""

    def __init__(self, model: AdapterModel) -> None:
        nn.Module.__init__(self)
        GuideMessenger.__init__(self, model)
        if self.needs_sites and not model.sites:
            raise ConfigError(
                f"{type(self).__name__} has nothing to infer: the cores of this {type(model).__name__} are fixed to "
                "I. Take a model with random cores, such as StochasticCore, or the guide Delta (maximum likelihood)."
            )
        unserved = [site for site in model.sites if site.granularity not in self.serves]
        if unserved:
            raise ConfigError(
                f"{type(self).__name__} cannot infer {unserved[0].name!r}, which is "
                f"{unserved[0].granularity.value}; it serves "
                f"{', '.join(sorted(g.value for g in self.serves))}. Build the model with another granularity=, or "
                "take a guide that serves it (MeanField and Delta serve all)."
            )

    def posterior(self, call: CoreCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Return q over the cores of one site.

        Args:
            call: the site, its feature (*S, B, T, r), masks and context.
            prior: the prior of one core, event shape (r, r).

        Returns:
            A distribution of event shape (r, r) whose batch shape broadcasts to (L,) for a global site, (*S, B, T) for
            a token and (*S, B, 1) for a sequence site; its parameters are float32.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Constructor arguments other than the model, as JSON."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Run the model under the guide; return every sample site's value."""
        register_if_captured("guide", self)
        samples: dict[str, Tensor] = super().__call__(*args, **kwargs)
        return samples

    def get_posterior(self, name: str, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Leave sites that are not cores (an unobserved ``obs``) to their prior."""
        return prior

    def _pyro_sample(self, msg: Any) -> None:
        call: CoreCall | None = msg["infer"].get(CORE)
        if call is None or msg["is_observed"]:
            super()._pyro_sample(msg)
            return
        prior = msg["fn"]
        core = self.posterior(call, self.model.prior.core(call.site))  # type: ignore[attr-defined]
        shape = _core_batch_shape(call)
        posterior = call.site.wrap(core if core.batch_shape == shape else core.expand(shape), call.token_mask)
        msg["infer"]["prior"] = prior
        msg["fn"] = posterior if posterior.batch_shape == prior.batch_shape else posterior.expand(prior.batch_shape)


def _core_batch_shape(call: CoreCall) -> tuple[int, ...]:
    return (len(call.site.layers),) if call.feature is None else tuple(call.feature.shape[:-1])


def site_key(site: CoreSite) -> str:
    """A site's name as a key of ``nn.ModuleDict`` or ``nn.ParameterDict``, which allow no dots."""
    return site.name.replace(".", "-")
