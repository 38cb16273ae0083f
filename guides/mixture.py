"""``Mixture``: several mean fields over all weights at once, for posteriors with more than one mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from bayes_adapters.errors import whole_number
from bayes_adapters.guides._checks import require_deviation
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class EqualMixture(TorchDistribution):
    """``q(w) = (1/K) Σ_k N(w; μ_k, diag(σ_k²))``: K Gaussians of the same weight.

    A draw is ``μ_k + σ_k ⊙ ε`` with k uniform. The weights are constants, so the derivative along a draw's own
    component is unbiased: ``∇ E_q f(w) = (1/K) Σ_k E_ε ∇ f(μ_k + σ_k ⊙ ε)``. Draws made at once go through the
    components in turn, from a random one on (stratified: each draw alone has the distribution q). Mean ``μ̄ = (1/K) Σ
    μ_k``, variance ``(1/K) Σ_k [σ_k² + (μ_k − μ̄)²]``; no entropy is known.

    Args:
        loc: μ, shape (K, D).
        scale: σ > 0, shape (K, D).

    Batch shape (), event shape (D,).

    >>> q = EqualMixture(torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.5))
    >>> q.mean, q.variance
    (tensor([0.]), tensor([1.2500]))
    """

    arg_constraints = {
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "K D"],
        scale: Float[Tensor, "K D"],
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(batch_shape, loc.shape[1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """μ̄, which may lie between modes."""
        return self.loc.mean(0).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """See above."""
        variance = (self.scale.square() + (self.loc - self.loc.mean(0)).square()).mean(0)
        return variance.expand(self.batch_shape + self.event_shape)

    def from_uniforms(self, shape: Any, uniforms: Callable[[int], Tensor]) -> Tensor:
        """Return draws of this ``shape``; ``uniforms(n)`` has n of them for each of its two leading entries.

        The first of the 1 + D numbers of a draw chooses its component.
        """
        each = 1 + shape[-1]
        chosen, noise = uniforms(math.prod(shape[2:-1]) * each).reshape(*shape[:-1], each).split([1, each - 1], -1)
        component = (chosen[..., 0] * len(self.loc)).long().clamp(max=len(self.loc) - 1)
        return self._drawn(component, torch.special.ndtri(noise))

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "..."]:  # noqa: B008
        """Draw, stratified over the components."""
        shape, device = torch.Size(sample_shape) + self.batch_shape, self.loc.device
        first = torch.randint(len(self.loc), (), device=device)
        component = (first + torch.arange(shape.numel(), device=device)).remainder(len(self.loc)).reshape(shape)
        return self._drawn(component, torch.randn(shape + self.event_shape, dtype=self.loc.dtype, device=device))

    def _drawn(self, component: Int[Tensor, "*batch"], noise: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return self.loc[component] + self.scale[component] * noise

    def log_prob(self, value: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
        """Return log q, nats."""
        white = (value[..., None, :] - self.loc) / self.scale
        each = -0.5 * (white.square() + math.log(2 * math.pi)).sum(-1) - self.scale.log().sum(-1)
        found = each.logsumexp(-1) - math.log(len(self.loc))
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> EqualMixture:
        """Return the same with another batch shape."""
        return EqualMixture(self.loc, self.scale, torch.Size(batch_shape), validate_args=False)


class Mixture(JointGuide):
    """``q(w) = (1/K) Σ_k Π_i N(w_i; μ_ki, σ_ki²)`` over all D entries of all sites: K mean fields of the same weight.

    Components start at K starts of the model, drawn one after the other. One component covers one mode, as a member of
    an ensemble does; the mixture's ELBO counts what they cover together: K equal, well separated modes gain log K nats
    over one of them. Weights of components are not learned: a constant weight makes the derivative along a draw
    unbiased, and modes that differ in mass can take more than one component. 2 K D numbers.

    The ELBO takes ``log q(w) − log p(w)`` at each draw. With ``num_particles`` a multiple of K each component gets the
    same number of draws in a step. ``mean_only`` and ``to_lora`` take the mean of all components, which may lie between
    modes, where the posterior has no mass; predict from draws.

    Source: mixtures as posteriors, Jaakkola and Jordan 1998, "Improving the mean field approximation via the use of
    mixture distributions".

    Args:
        model: a model whose random parts are weights.
        components: K.
        init_scale: σ of every entry at the start, a standard deviation.

    Raises:
        ConfigError: an option is out of range.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> {name: tuple(value.shape) for name, value in Mixture(model, components=3).named_parameters()}
    {'loc': (3, 32), 'log_scale': (3, 32)}
    """

    name: ClassVar[str] = "mixture"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL

    def __init__(self, model: AdapterModel, *, components: int = 3, init_scale: float = 0.1) -> None:
        super().__init__(model)
        whole_number("components", components)
        require_deviation(init_scale)
        self.components, self.init_scale = components, init_scale
        starts = torch.stack([self.start() for _ in range(components)])
        self.loc = nn.Parameter(starts)
        self.log_scale = nn.Parameter(torch.full_like(starts, math.log(init_scale)))

    def joint(self) -> TorchDistributionMixin:
        return EqualMixture(self.loc, self.log_scale.exp(), validate_args=False)

    def config(self) -> dict[str, Any]:
        return {"components": self.components, "init_scale": self.init_scale}
