"""``Hypernetwork``: the core of an inter-modal path is a network's answer to the other modality (CoLA)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.devices import fp32
from bayes_adapters.errors import choice, whole_number
from bayes_adapters.guides._checks import (
    hidden_widths,
    require_float32,
    require_gamma,
    require_network,
    require_product,
    require_uncertain,
)
from bayes_adapters.guides._head import ScaleTransform
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Part, SiteCall

_EPS = 1e-6


class Phi(StrEnum):
    """How Φ comes about."""

    DENSE = "dense"
    """``W_up h`` reshaped to (r, r)."""
    KRON = "kron"
    """``Φ₁ ⊗ Φ₂``, Φ₁ (m, p) and Φ₂ (n, q) with m n = p q = r: m p + n q outputs in the place of r²."""
    STATIC = "static"
    """One learned matrix per site, started at the identity."""
    IDENTITY = "identity"
    """I: nothing is learned, the two paths add up to one of a larger rank."""


class Hypernetwork(AdapterGuide):
    """``Φ = LN_{r×r}( W_up LN(GELU(W_down x̄ + b)) + b' )`` for each site, x̄ the other modality's descriptor (d_c).

    With ``scale=None`` q(Φ | x̄) is a point mass: CoLA. With a scale transform it is the Gaussian ``N(Φ, f(W_s h)²)``
    elementwise, h the normalised hidden vector: Bayesian CoLA, which no paper has. The prior is the model's.

    W_down is (h, d_c), W_up (r², h), with h = ``bottleneck`` or else d_c/γ. Linear layers start as torch's do, both
    layer norms (eps 1e-6) at gain 1 and bias 0: at the start each Φ has mean 0 and standard deviation 1 over its
    entries. Over the inputs Φ spans about h + 2 dimensions at most, however large r² is.

    Source: Suharitdamrong et al. 2026, CoLA, arXiv 2604.03314, and its released code; ``kron`` from its ablation.

    Args:
        model: a model with inter-modal cores, such as CoLA.
        gamma: γ, the reduction factor; of no effect where ``bottleneck`` gives a width, or ``phi`` has no network.
        bottleneck: h for every descriptor, however wide, or source encoder → h; encoders left out keep d_c/γ. An
            encoder that widens from stage to stage has descriptors of several widths: for Swin-V2-L the paper takes 96
            throughout.
        phi: see :class:`Phi`.
        scale: None, ``"softplus"`` or ``"sigmoid_squared"``.

    Raises:
        ConfigError: γ below 1 or above a descriptor's width, a bottleneck below 1 or of no source encoder, a scale for
            ``phi="identity"``, a bottleneck for a ``phi`` without a network, or ``phi="kron"`` with a rank that is a
            prime number.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import CoLA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> model = CoLA(encoders, Bernoulli(), rank=2)
    >>> guide = Hypernetwork(model, gamma=4, scale="softplus")
    >>> len(guide.nets), sum(p.numel() for p in guide.nets[site_key(model.sites[0])].parameters())
    (12, 54)
    """

    name: ClassVar[str] = "hypernetwork"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.SEQUENCE, Granularity.TOKEN})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.CROSS})

    def __init__(
        self,
        model: AdapterModel,
        *,
        gamma: int = 16,
        bottleneck: int | Mapping[str, int] | None = None,
        phi: Phi | str = Phi.DENSE,
        scale: ScaleTransform | str | None = None,
    ) -> None:
        super().__init__(model)
        whole_number("gamma", gamma)
        self.gamma, self.phi = gamma, choice(Phi, "phi", phi)
        self.scale = None if scale is None else choice(ScaleTransform, "scale", scale)
        require_uncertain(self.phi.value, self.scale)
        sources = sorted({site.source for site in model.sites})
        widths = hidden_widths(bottleneck, sources)
        learned = self.phi in (Phi.DENSE, Phi.KRON)
        require_network(self.phi.value, bottleneck, learned)
        self.bottleneck = dict(bottleneck) if isinstance(bottleneck, Mapping) else bottleneck
        self.nets = nn.ModuleDict()
        self.static = nn.ParameterDict()
        for site in model.sites:
            width, key = model.descriptor_width(site), site_key(site)
            require_gamma(gamma, width, read=learned and site.source not in widths)
            require_product(site.rank, self.phi is Phi.KRON and (1, 1) in kron_shapes(site.rank))
            if learned:
                self.nets[key] = _Net(width, widths.get(site.source) or width // gamma, site.rank, self.phi, self.scale)
            elif self.phi is Phi.STATIC:
                self.static[key] = nn.Parameter(torch.eye(site.rank))
                if self.scale is not None:
                    self.static[f"{key}-scale"] = nn.Parameter(torch.zeros(site.rank, site.rank))
        self.to(next(model.parameters()).device).float()  # whatever torch's default dtype is

    @property
    def deterministic(self) -> bool:
        return self.scale is None

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        key, g = site_key(call.site), None
        require_float32(self)
        with fp32(call.z.device):
            if self.phi is Phi.IDENTITY:
                loc = torch.eye(call.site.rank, device=call.z.device).expand(*call.z.shape[:-1], -1, -1)
            elif self.phi is Phi.STATIC:
                loc, g = self.static[key], self.static.get(f"{key}-scale", None)
            else:
                loc, g = self.nets[key](call.z)
            if self.scale is None or g is None:
                return dist.Delta(loc, event_dim=2)
            return dist.Normal(loc, self.scale(g), validate_args=False).to_event(2)

    def config(self) -> dict[str, Any]:
        return {
            "gamma": self.gamma,
            "bottleneck": self.bottleneck,
            "phi": self.phi.value,
            "scale": None if self.scale is None else self.scale.value,
        }


class _Net(nn.Module):
    """One site's hypernetwork: x̄ → (Φ, pre-activation of the scale)."""

    def __init__(self, width: int, hidden: int, rank: int, phi: Phi, scale: ScaleTransform | None) -> None:
        super().__init__()
        self.rank = rank
        self.shapes = kron_shapes(rank) if phi is Phi.KRON else None
        outputs = rank * rank if self.shapes is None else sum(m * p for m, p in self.shapes)
        self.down = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=_EPS)
        self.up = nn.Linear(hidden, outputs)
        self.core_norm = nn.LayerNorm([rank, rank], eps=_EPS)
        self.spread = None if scale is None else nn.Linear(hidden, rank * rank)

    def forward(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n r r"], Float[Tensor, "*n r r"] | None]:
        """Return Φ and, where there is a scale, its pre-activation."""
        h = self.norm(F.gelu(self.down(x)))
        u = self.up(h)
        if self.shapes is None:
            core = u.unflatten(-1, (self.rank, self.rank))
        else:
            (m, p), (n, q) = self.shapes
            left, right = u[..., : m * p].unflatten(-1, (m, p)), u[..., m * p :].unflatten(-1, (n, q))
            core = torch.einsum("...mp,...nq->...mnpq", left, right).flatten(-4, -3).flatten(-2)
        g = None if self.spread is None else self.spread(h).unflatten(-1, (self.rank, self.rank))
        return self.core_norm(core), g


def kron_shapes(rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (m, p) and (n, q), square, with m n = p q = ``rank`` and m ≥ n as close as they get.

    >>> kron_shapes(16), kron_shapes(32)
    (((4, 4), (4, 4)), ((8, 8), (4, 4)))
    """
    n = max(k for k in range(1, math.isqrt(rank) + 1) if rank % k == 0)
    return (rank // n, rank // n), (n, n)
