"""Guides whose posterior joins all weights of a model: draws of different layers and sites may correlate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from bayes_adapters.distributions import mean_of
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.priors import HYPER, SINGLE_PRIOR
from bayes_adapters.sites import REAL, SITE, Granularity, Part, SiteCall

JOINT = "joint"
"""The name of the auxiliary sample site that draws all weights of a model at once."""


class JointGuide(AdapterGuide):
    """Base of guides with one distribution over all weights: ``w ~ q(w)``, w in R^D, cut into the sites.

    A subclass writes :meth:`joint`, which returns any distribution over w: Gaussian of full or low rank, a flow. Then::

        loss = E_q[nll] + (w / N) KL(q ‖ p),    p(w) = Π_sites p(w_site)

    w is drawn once per pass by the auxiliary site ``joint``; the model's sites are its parts, points given w, so that
    log q counts once. The KL is closed where the priors are Gaussian with independent entries and q tells its mean,
    variance and entropy (:func:`joint_kl`), else ``log q(w) − log p(w)`` at the draw. Pyro's own ELBOs take the latter.

    ``predict`` with a seed draws w by the inverse CDF of q, or as ``loc + L ε`` for MultivariateNormal, ``loc + W ε +
    √d ε'`` for LowRankMultivariateNormal, and through the transforms of a TransformedDistribution over any of these. A
    distribution of your own says in ``from_uniforms(shape, uniforms)`` how a draw of it follows from uniforms.
    ``mean_only`` and ``to_lora`` need q's mean. A model's flipout stays off: the signs that it gives each example would
    undo the correlations, so all examples of a batch share one draw.

    Args:
        model: a model whose random parts are weights (one draw for the whole data set).

    Raises:
        ConfigError: a site cannot be served; in a pass, what ``joint`` returns is no distribution over w.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, models
    >>> net = BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> model = models.StochasticCore(net, Bernoulli(), rank=2, granularity="global", num_data=10)
    >>> class Full(JointGuide):
    ...     name = "full"
    ...     def __init__(self, model):
    ...         super().__init__(model)
    ...         self.loc = torch.nn.Parameter(self.start())
    ...         self.tril = torch.nn.Parameter(0.1 * torch.eye(self.size))
    ...     def joint(self):
    ...         return dist.MultivariateNormal(self.loc, scale_tril=self.tril.tril())
    >>> guide = Full(model)
    >>> guide.size, guide.layout
    (8, {'core.global': slice(0, 8, None)})
    """

    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL
    serves_hyper: ClassVar[bool] = True

    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model)
        self.layout: dict[str, slice] = {}
        for site in model.sites:
            self.layout[site.name] = slice(self.size, self.size + prod(site.shape))

    @property
    def size(self) -> int:
        """D, the number of entries of all sites together."""
        return max((place.stop for place in self.layout.values()), default=0)

    def start(self) -> Float[Tensor, " D"]:
        """Return where the model lets each site start, as one vector on the model's device.

        It has torch's default dtype, whatever the model was cast to: bfloat16 has no Cholesky factors.
        """
        sites = self.model.sites  # type: ignore[attr-defined]
        start = torch.cat([self.model.start(site).flatten() for site in sites])  # type: ignore[attr-defined]
        return start.to(torch.get_default_dtype())

    def joint(self) -> TorchDistributionMixin:
        """Return q(w): batch shape (), event shape (D,), its entries in the order of ``layout``."""
        raise NotImplementedError

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Return the point at the mean of q: what is left of a site's own posterior when its draws come from w."""
        return self._part(mean_of(self._checked(), call.site.name), call)

    def get_traces(self) -> tuple[Trace, Trace]:
        """Return the traces of model and guide; the model has no site ``joint``."""
        model_trace, guide_trace = super().get_traces()
        if JOINT in model_trace.nodes:
            model_trace.remove_node(JOINT)
        return model_trace, guide_trace

    def _pyro_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        if msg["name"] == JOINT:
            msg["infer"]["prior"] = msg["fn"]
        elif call is None or msg["is_observed"] or self.is_of_head(call.site):
            super()._pyro_sample(msg)
        else:
            nodes: dict[str, Any] = self.trace.nodes
            if JOINT in nodes:
                value = nodes[JOINT]["value"]
            else:
                infer: Any = {"is_auxiliary": True, HYPER: JOINT}
                value = pyro.sample(JOINT, self._checked(), infer=infer)
            msg["infer"]["prior"] = msg["fn"]
            msg["fn"] = call.site.wrap(self._part(value, call), None)

    def _part(self, value: Float[Tensor, "*batch D"], call: SiteCall) -> Any:
        part = value[..., self.layout[call.site.name]]
        return dist.Delta(part.reshape(*value.shape[:-1], *call.site.shape), event_dim=len(call.site.event))

    def _checked(self) -> Any:
        q = self.joint()
        shapes = [tuple(getattr(q, name, ("?",))) for name in ("batch_shape", "event_shape")]
        if not isinstance(q, TorchDistributionMixin) or shapes != [(), (self.size,)]:
            raise ConfigError(
                f"{type(self).__name__}.joint() must return a distribution from pyro.distributions of batch shape () "
                f"and event shape ({self.size},); it returned a {type(q).__module__}.{type(q).__name__} of batch shape "
                f"{shapes[0]} and event shape {shapes[1]}. End it with .to_event(1)."
            )
        return q


def joint_kl(joint: Any, sites: Mapping[str, Any]) -> Tensor:
    """Return KL(q ‖ p) of a draw of all weights, shape = batch shape of q.

    From priors N(m_i, s_i²) with independent entries it takes q's entropy H and its marginal moments alone::

        KL = ½ Σ_i [ (Var_q w_i + (E_q w_i − m_i)²) / s_i² + log(2π s_i²) ] − H(q)

    Args:
        joint: the auxiliary site's node in the guide's trace.
        sites: site → its node in the model's trace, in the order of the layout.
    """
    q, value = joint["fn"], joint["value"]
    independent = _independent(sites, q.batch_shape)
    if independent is not None:
        mean, scale = independent
        try:
            squares = (q.variance + (q.mean - mean).square()) / scale.square()
            return 0.5 * (squares + math.log(2 * math.pi)).sum(-1) + scale.log().sum(-1) - q.entropy()
        except NotImplementedError:  # a flow, or a mixture
            pass
    prior = sum(site["fn"].log_prob(site["value"]) for site in sites.values())
    return q.log_prob(value) - prior


def _independent(sites: Mapping[str, Any], batch: torch.Size) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of the prior of every weight, shape (*batch, D); None where it is another than Gaussian."""
    means: list[Tensor] = []
    scales: list[Tensor] = []
    for site in sites.values():
        single = site["infer"][SINGLE_PRIOR]
        base = single
        while isinstance(base, torch.distributions.Independent):
            base = base.base_dist
        if type(base) is not dist.Normal:
            return None
        shape = single.batch_shape[-1:] + single.event_shape  # layers and event
        means.append(single.mean.expand(batch + shape).flatten(len(batch)))
        scales.append(single.stddev.expand(batch + shape).flatten(len(batch)))
    return torch.cat(means, -1), torch.cat(scales, -1)
