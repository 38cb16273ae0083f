"""A scale of its own for every layer, with a prior: layers that the data leave alone shrink, others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.errors import positive_number

if TYPE_CHECKING:
    from bayes_adapters.sites import Site


class LayerScales:
    """``E_lj ~ N(0, (s t_l)²)`` for the entries j of layer l, ``t_l ~ HalfCauchy(1)`` or ``t_l ~ Gamma(k, k)``.

    Density: ``Π_l p(t_l) Π_j N(E_lj; 0, (s t_l)²)``. t counts once per data set; it is the site ``scale.<site>``, a
    hyper-parameter of the prior, and of weights holds the layers of its site side by side. Its posterior is log-normal,
    ``log t_l ~ N(m_l, v_l²)``, under any guide that infers hyper-parameters, and starts at 1.

    The KL of a mean field ``N(μ, σ²)`` over E and of t together::

        Σ_l { KL(q(t_l) ‖ p(t_l))  +  Σ_j [ log(s/σ_lj) + m_l − ½ + (σ_lj² + μ_lj²) / (2 s²) · exp(2 v_l² − 2 m_l) ] }

    with ``KL(q(t) ‖ Gamma(k, k)) = −½ log(2πe v²) − k m − k log k + log Γ(k) + k exp(m + v²/2)``, and of the
    half-Cauchy ``−½ log(2πe v²) − m − log(2/π) + E_q log(1 + t²)``, which has no closed form. The loss takes all of it
    at the draw of t, which is right on average.

    The half-Cauchy has heavy tails and no pole at 0: most layers may be small and some large. Gamma(k, k) has mean 1
    and deviation 1/√k; large k fixes t.

    Source: Gelman 2006, "Prior distributions for variance parameters in hierarchical models", doi 10.1214/06-BA117A.

    Args:
        scale: s > 0, the scale of an entry at t = 1.
        concentration: k > 0, for the Gamma; None takes the half-Cauchy.

    Raises:
        ConfigError: an option is not positive and finite.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, guides, models
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> options = {"rank": 2, "granularity": "global", "num_data": 10}
    >>> model = models.StochasticCore(BertModel(tiny), Bernoulli(), prior=LayerScales(0.2), **options)
    >>> guides.MeanField(model).hyper.loc["scale-core-global"].shape  # query and value
    torch.Size([2])
    """

    name: ClassVar[str] = "layer_scales"
    takes_site: ClassVar[bool] = True
    """The prior is called with the site, for its layers."""

    def __init__(self, scale: float = 0.2, *, concentration: float | None = None) -> None:
        positive_number("scale", scale)
        if concentration is not None:
            positive_number("concentration", concentration)
        self.scale, self.concentration = scale, concentration

    def __call__(self, site: Site) -> TorchDistributionMixin:
        """Sample the site's t and return the prior of its entries given them: shape ``site.shape``."""
        ones = torch.ones(len(site.layers))
        k = self.concentration
        relative = dist.HalfCauchy(ones) if k is None else dist.Gamma(k * ones, k * ones)
        t = pyro.sample(f"scale.{site.name}", relative.to_event(1))
        scale = (self.scale * t).reshape(-1, *[1] * len(site.event)).expand(len(site.layers), *site.event)
        return dist.Normal(torch.zeros(site.shape), scale.reshape(site.shape))

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {"scale": self.scale, "concentration": self.concentration}
