"""``RankGates``: how probable each rank of an adapter is."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.errors import positive_number
from bayes_adapters.guides._gate_checks import require_probability, require_untraced_gates
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Part, SiteCall


class RelaxedBernoulliGates(dist.Bernoulli):  # type: ignore[misc]
    """``g_i ~ Bernoulli(φ_i)``, with relaxed draws while a temperature is given.

    The KL is Bernoulli's in either case. A relaxed draw is ``sigmoid((logit φ_i + ℓ_i) / τ)``, ℓ_i standard logistic:
    it lies in (0, 1), is above ½ with probability φ_i, and is differentiable in φ (the binary concrete distribution,
    Maddison, Mnih and Teh 2017, arXiv 1611.00712).

    Args:
        logits: log φ / (1 − φ), shape = batch shape.
        temperature: τ > 0; None draws 0 and 1.
    """

    def __init__(
        self, logits: Float[Tensor, "..."], temperature: float | None = None, *, validate_args: bool | None = None
    ) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Whether draws are relaxed."""
        return self.temperature is not None

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "..."]:  # noqa: B008
        """Draw relaxed gates."""
        assert self.temperature is not None  # has_rsample says so
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, device=self.logits.device).clamp(1e-6, 1.0 - 1e-6)
        return ((self.logits + uniform.logit()) / self.temperature).sigmoid()

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedBernoulliGates:
        """Return the same with another batch shape."""
        return RelaxedBernoulliGates(self.logits.expand(batch_shape), self.temperature, validate_args=False)


class RankGates(AdapterGuide):
    """``q(g) = Π_i Bernoulli(g_i; φ_i)``, one learned probability per rank of each layer: spike and slab over ranks.

    With the prior Bernoulli(π), once per data set, in nats::

        KL = Σ_i [ φ_i log(φ_i / π) + (1 − φ_i) log((1 − φ_i) / (1 − π)) ]

    A rank whose loss falls by less than its KL costs is switched off: φ → 0. The gradient of the expected loss needs
    relaxed draws: in training mode a gate lies between 0 and 1 (:class:`RelaxedBernoulliGates`), so the loss is that of
    a relaxed model and its gradient is biased, the less the smaller the temperature, and the noisier. ``predict`` and
    ``guide.eval()`` draw 0 and 1. ``mean_only`` and ``to_lora`` take φ itself as the gate; ``to_lora(draw=s,
    drop_zero=True)`` takes out the ranks that draw s has switched off.

    Args:
        model: a model with gates, such as GatedLoRA.
        init_probability: φ at the start, in (0, 1).
        temperature: τ of the relaxed draws.

    Raises:
        ConfigError: an option is out of range; in training mode, a run that is traced, as Pyro's own ELBOs do: they
            would score a relaxed gate as a Bernoulli's.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import GatedLoRA
    >>> guide = RankGates(GatedLoRA(BertModel(tiny), Bernoulli(), num_data=100, rank=4, targets=["query"]))
    >>> guide.inclusion()
    {'encoder.layer.0.attention.self.query': tensor([0.9000, 0.9000, 0.9000, 0.9000])}
    """

    name: ClassVar[str] = "rank_gates"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.GATE})

    def __init__(self, model: AdapterModel, *, init_probability: float = 0.9, temperature: float = 0.5) -> None:
        super().__init__(model)
        require_probability(init_probability)
        positive_number("temperature", temperature)
        self.init_probability, self.temperature = init_probability, temperature
        device = next(model.parameters()).device
        self.logits = nn.ParameterDict()
        for site in model.sites:
            start = torch.full(site.shape, init_probability, device=device).logit()
            self.logits[site_key(site)] = nn.Parameter(start)

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        if self.training:
            require_untraced_gates()
        temperature = self.temperature if self.training else None
        gates = RelaxedBernoulliGates(self.logits[site_key(call.site)], temperature, validate_args=False)
        return gates.to_event(1)

    def config(self) -> dict[str, Any]:
        return {"init_probability": self.init_probability, "temperature": self.temperature}

    @torch.no_grad()
    def inclusion(self) -> dict[str, Float[Tensor, " r"]]:
        """Return layer path → φ of its ranks."""
        sites = self.model.sites  # type: ignore[attr-defined]
        return {path: self.logits[site_key(site)][i].sigmoid() for site in sites for i, path in enumerate(site.layers)}
