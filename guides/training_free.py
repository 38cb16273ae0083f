"""``TrainingFree``: Gaussian noise of one size around a trained adapter; nothing is trained (TFB)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.devices import float64
from bayes_adapters.guides._checks import check_noise, require_orthogonal
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Part, Site, SiteCall

_DAMPING = 1e-6  # of the released code: added to every singular value


class TrainingFree(AdapterGuide):
    """``q(A'_ij) = N(M_ij, (σ_q / (d_i + 1e-6))²)`` beside ``B' = U diag(d)``, whose columns are orthogonal.

    Then ``Var(B'A') = σ_q² U Uᵀ`` for each column of B'A': noise of one size in every direction of B's column space.
    σ_q is in units of the entries of B A, before the scale α / r. A direction in which B is exactly 0 (d_i = 0) has the
    deviation σ_q there: any would do, since B' multiplies it by 0.

    :func:`bayes_adapters.surgery.training_free.bayesianise` makes model and guide from a trained adapter. M, d and log
    σ_q are buffers: ``save`` and ``load`` keep them, and nothing of the guide is trained. Since d describes B', the
    guide freezes the model's B: ``fit`` trains what is left, the head and the likelihood, under noise that stays as it
    is, and its KL is a constant. With the head frozen as well, ``fit`` refuses: there is nothing to train.

    Source: TFB, arXiv 2412.05723, theorem 4.1, and its released code.

    Args:
        model: a model whose A alone is random, such as StochasticDown; its B is frozen.
        scale: σ_q > 0.

    Raises:
        ConfigError: σ_q is not positive and finite, or another part of the model is random.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> guide = TrainingFree(StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2), scale=0.05)
    >>> round(guide.scale, 6), list(guide.parameters())
    (0.05, [])
    """

    name: ClassVar[str] = "training_free"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.A})

    def __init__(self, model: AdapterModel, *, scale: float = 0.01) -> None:
        super().__init__(model)
        device = next(model.parameters()).device
        self.register_buffer("log_scale", torch.empty((), device=device))
        self.rescale(scale)
        for site in model.sites:
            self.register_buffer(_mean(site), model.start(site))
            self.register_buffer(_singular(site), torch.ones(*site.shape[:2], device=device))
        for layer in adapted_layers(model.backbone).values():
            if layer.lora_B is not None:
                layer.lora_B.requires_grad_(False)

    @property
    def scale(self) -> float:
        """σ_q."""
        return math.exp(float(self.get_buffer("log_scale")))

    def rescale(self, scale: float) -> None:
        """Set σ_q.

        Raises:
            ConfigError: it is not positive and finite.
        """
        check_noise(scale)
        self.get_buffer("log_scale").fill_(math.log(scale))

    @torch.no_grad()
    def place(self, means: Mapping[str, Float[Tensor, "r d_in"]]) -> None:
        """Set M, and d from the columns of the B' that the model holds: ``d_i = ‖B' e_i‖``.

        Args:
            means: layer path → M, shape (r, d_in).

        Raises:
            ConfigError: the columns of a layer's B are not orthogonal, so d would not be its singular values.
        """
        layers: Mapping[str, Any] = adapted_layers(self.model.backbone)  # type: ignore[attr-defined]
        for site in self.model.sites:  # type: ignore[attr-defined]
            for place, path in enumerate(site.layers if site.rank else ()):
                up = float64(layers[path].lora_B)
                singular = torch.linalg.vector_norm(up, dim=0)
                require_orthogonal(path, up, singular)
                self.get_buffer(_singular(site))[place] = singular.float().to(means[path].device)
                self.get_buffer(_mean(site))[place] = means[path]

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        mean, singular = self.get_buffer(_mean(call.site)), self.get_buffer(_singular(call.site))
        divisor = torch.where(singular > 0, singular + _DAMPING, 1.0)
        deviation = (self.get_buffer("log_scale").exp() / divisor)[..., None].expand_as(mean)
        return dist.Normal(mean, deviation, validate_args=False).to_event(2)

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale}


def _mean(site: Site) -> str:
    return f"mean-{site_key(site)}"


def _singular(site: Site) -> str:
    return f"singular-{site_key(site)}"
