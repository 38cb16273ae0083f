"""``Flow``: a mean-field Gaussian over all weights, bent by learned bijections (normalising flow)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar

import pyro.distributions as dist
import pyro.nn
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn

from bayes_adapters.errors import choice, whole_number
from bayes_adapters.guides._checks import require_deviation
from bayes_adapters.guides._flow_checks import require_entries, require_layers, require_network_memory
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class FlowLayer(StrEnum):
    """One bijection of R^D; each is the identity at the start."""

    COUPLING = "coupling"
    """``y₁ = x₁``, ``y₂ = s(x₁) ⊙ x₂ + m(x₁)`` of two random halves (RealNVP, arXiv 1605.08803): about 3/2 D h numbers;
    density of any point in one step."""
    AUTOREGRESSIVE = "autoregressive"
    """``y_i = s(x_<i) x_i + m(x_<i)`` in a random order (IAF, arXiv 1606.04934): about 3 D² numbers; draws and their
    density in one step, that of another point in D."""
    SPLINE = "spline"
    """``y_i = f_i(x_i)``, a monotone rational quadratic spline with eight pieces in [−4, 4] and the identity elsewhere
    (arXiv 1906.04032): 23 D numbers; bends each entry's marginal, entries do not correlate."""


_BINS, _BOUND = 8, 4.0
_SMALLEST = 1e-3  # slope of a spline, as in Pyro


class Flow(JointGuide):
    """``w = μ + σ ⊙ (f_K ∘ … ∘ f_1)(ε)``, ``ε ~ N(0, I)`` over all D entries of all sites.

    The bijections f_k act where w has mean 0 and deviation 1, so they have no unit. They start as identities: q is then
    the mean field N(μ, diag(σ²)). Density by the change of variables, nats::

        log q(w) = log N(ε; 0, I) − Σ_i log σ_i − Σ_k log |det ∂f_k/∂x|

    No entropy is known in closed form: the ELBO takes ``log q(w) − log p(w)`` at each draw, which is unbiased, its
    gradient too, and noisier than a closed KL. Nor is the mean known, so ``mean_only`` and ``to_lora`` are refused;
    ``weight_draw`` gives draws. Networks are trained by the same learning rate as everything else.

    Args:
        model: a model whose random parts are weights. Keep masks are discrete, and are refused.
        layers: the bijections f_1 … f_K, see :class:`FlowLayer`.
        hidden: h, hidden units of a network (tanh); an autoregressive one has at least D.
        init_scale: σ at the start, a standard deviation.
        max_gigabytes: the largest networks that are accepted; training takes four times that.

    Raises:
        ConfigError: an option is out of range; the networks would be too large; a bijection that joins entries has one
            entry only.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticCore
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), granularity="global", num_data=100, rank=2)
    >>> guide = Flow(model, layers=["coupling", "spline"])
    >>> q, w = guide.joint(), torch.zeros(8)
    >>> start = torch.distributions.Normal(guide.loc, 0.1).log_prob(w).sum()
    >>> torch.allclose(q.log_prob(w), start, rtol=1e-4, atol=1e-2)
    True
    """

    name: ClassVar[str] = "flow"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL

    def __init__(
        self,
        model: AdapterModel,
        *,
        layers: Sequence[FlowLayer | str] = (FlowLayer.COUPLING, FlowLayer.COUPLING),
        hidden: int = 16,
        init_scale: float = 0.1,
        max_gigabytes: float = 1.0,
    ) -> None:
        super().__init__(model)
        require_layers(layers)
        whole_number("hidden", hidden)
        require_deviation(init_scale)
        self.layers = tuple(choice(FlowLayer, "layers", layer) for layer in layers)
        self.hidden, self.init_scale, self.max_gigabytes = hidden, init_scale, max_gigabytes
        joins = [layer.value for layer in self.layers if layer is not FlowLayer.SPLINE]
        require_entries(joins, self.size)
        needs = {"coupling": 1.5 * self.size * hidden, "autoregressive": 3.0 * self.size * max(self.size, hidden)}
        require_network_memory(joins, needs, max_gigabytes)
        start = self.start()
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(init_scale)))
        self.networks = nn.ModuleList(self._network(layer).to(start.device) for layer in self.layers)
        for place in range(len(self.layers)):
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(place))
            self.register_buffer(f"order{place}", order.to(start.device), persistent=False)

    def joint(self) -> TorchDistributionMixin:
        base = dist.Normal(torch.zeros_like(self.loc), 1.0, validate_args=False).to_event(1)
        # Transforms keep their last input and output, so they are made in each pass; the guide holds networks alone.
        transforms = [part for place in range(len(self.layers)) for part in self._transforms(place)]
        transforms.append(dist.transforms.AffineTransform(self.loc, self.log_scale.exp(), event_dim=1, cache_size=1))
        return dist.TransformedDistribution(base, transforms, validate_args=False)

    def config(self) -> dict[str, Any]:
        return {
            "layers": [layer.value for layer in self.layers],
            "hidden": self.hidden,
            "init_scale": self.init_scale,
            "max_gigabytes": self.max_gigabytes,
        }

    def _network(self, layer: FlowLayer) -> nn.Module:
        """What computes a bijection's parameters, at the identity."""
        size = self.size
        if layer is FlowLayer.SPLINE:
            return _Knots(size)
        if layer is FlowLayer.COUPLING:
            rest = size - size // 2
            network: Any = pyro.nn.DenseNN(size // 2, [self.hidden], [rest, rest], nonlinearity=nn.Tanh())
        else:
            wide = [max(size, self.hidden)]
            in_order: Any = torch.arange(size)  # the order is random outside of it
            network = pyro.nn.AutoRegressiveNN(size, wide, permutation=in_order, nonlinearity=nn.Tanh())
        for parameter in network.layers[-1].parameters():
            nn.init.zeros_(parameter)
        return network

    def _transforms(self, place: int) -> list[Any]:
        network: Any = self.networks[place]
        if self.layers[place] is FlowLayer.SPLINE:
            each = ConditionedSpline(network(), bound=_BOUND, order="quadratic")
            return [dist.transforms.IndependentTransform(each, 1, cache_size=1)]
        order = self.get_buffer(f"order{place}")
        if self.layers[place] is FlowLayer.COUPLING:
            joined: Any = dist.transforms.AffineCoupling(self.size // 2, network)
        else:
            joined = dist.transforms.AffineAutoregressive(network)
        return [dist.transforms.Permute(order), joined, dist.transforms.Permute(order.argsort())]


class _Knots(nn.Module):
    """Widths, heights and slopes of D splines; the identity where all numbers are 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.widths = nn.Parameter(torch.zeros(size, _BINS))
        self.heights = nn.Parameter(torch.zeros(size, _BINS))
        self.slopes = nn.Parameter(torch.zeros(size, _BINS - 1))

    def forward(self) -> tuple[Float[Tensor, "D k"], Float[Tensor, "D k"], Float[Tensor, "D j"], None]:
        one = math.log(math.expm1(1.0 - _SMALLEST))  # softplus of it, and what Pyro adds, is a slope of 1
        slopes = nn.functional.softplus(self.slopes + one)
        return self.widths.softmax(-1), self.heights.softmax(-1), slopes, None
