"""A Gaussian process over depth: weights of neighbouring layers are alike before the data speak."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.kl import register_kl

from bayes_adapters.devices import float64
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import choice
from bayes_adapters.kernels import Kernel
from bayes_adapters.priors._checks import require_depth, require_layers, require_square

if TYPE_CHECKING:
    from bayes_adapters.sites import Site

_JITTER = 1e-6
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


class CorrelatedLayers(TorchDistribution):
    """``vec E ~ N(loc, K ⊗ σ² I)``: every entry has variance σ², and correlates over L layers by ``K = T Tᵀ``.

    Density, with n entries per layer and rows e_j of one entry over all layers::

        log p(E) = −½ Σ_j ‖T⁻¹ (e_j − loc_j)‖² / σ² − n Σ_l log T_ll − n L log σ − ½ n L log 2π

    KL from independent Gaussians N(μ, s²), closed, with P = K⁻¹::

        KL = ½ Σ_j [ Σ_l P_ll s²_lj / σ² + (μ_j − loc_j)ᵀ P (μ_j − loc_j) / σ² − L + 2 Σ_l log(T_ll σ / s_lj) ]

    Args:
        loc: shape (L, *event).
        scale_tril: T, lower triangular, shape (L, L).
        scale: σ, one number.

    Batch shape (), event shape (L, *event).

    >>> both = CorrelatedLayers(torch.zeros(2, 1), torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.tensor(1.0))
    >>> same, opposite = both.log_prob(torch.tensor([[[1.0], [1.0]], [[1.0], [-1.0]]]))
    >>> bool(same > opposite)
    True
    """

    arg_constraints = {"scale": constraints.positive, "scale_tril": constraints.lower_cholesky}
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "L ..."],
        scale_tril: Float[Tensor, "L L"],
        scale: Float[Tensor, ""],
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale_tril, self.scale = loc, scale_tril, scale
        super().__init__(batch_shape, loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All reals."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Float[Tensor, "*batch L ..."]:
        """``loc``."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Float[Tensor, "*batch L ..."]:
        """``σ² K_ll`` for every entry of layer l."""
        variance = self.scale_tril.square().sum(1) * self.scale.square()
        return variance.reshape(-1, *[1] * (len(self.event_shape) - 1)).expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CorrelatedLayers:
        """Return the same with another batch shape."""
        return CorrelatedLayers(self.loc, self.scale_tril, self.scale, torch.Size(batch_shape), validate_args=False)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the log density, nats."""
        entries = self._flat(value - self.loc)
        white = torch.linalg.solve_triangular(self.scale_tril, entries, upper=False) / self.scale
        found = -0.5 * white.square().sum((-2, -1)) - self._log_volume(entries.shape[-1])
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "..."]:  # noqa: B008
        """Draw ``loc + σ T ε``."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * (self.scale_tril @ self._flat(noise)).reshape(shape)

    def kl_from(self, mean: Tensor, deviation: Tensor) -> Float[Tensor, "..."]:
        """Return KL(N(mean, deviation²) ‖ self), both of shape (..., L, *event)."""
        mean, deviation = self._flat(mean - self.loc), self._flat(deviation)
        inverse = torch.linalg.solve_triangular(self.scale_tril, torch.eye(len(self.loc)).to(self.loc), upper=False)
        precise = inverse.square().sum(0)[:, None]  # the diagonal of P
        quadratic = ((inverse @ mean).square() + precise * deviation.square()).sum((-2, -1)) / self.scale.square()
        count = mean.shape[-2] * mean.shape[-1]
        entropy = deviation.log().sum((-2, -1)) + 0.5 * count * math.log(2 * math.pi)
        return 0.5 * (quadratic - count) + self._log_volume(mean.shape[-1]) - entropy

    def _flat(self, value: Tensor) -> Float[Tensor, "... L n"]:
        return value.reshape(*value.shape[: value.dim() - len(self.event_shape) + 1], -1)

    def _log_volume(self, entries: int) -> Tensor:
        """Log det of σ T for all entries, and ½ log 2π for each number."""
        each = self.scale_tril.diagonal().log().sum() + len(self.loc) * (self.scale.log() + 0.5 * math.log(2 * math.pi))
        return entries * each


@register_kl(Independent, CorrelatedLayers)  # type: ignore[untyped-decorator]
def _kl_independent(q: Any, p: CorrelatedLayers) -> Tensor:
    base = base_distribution(q)
    if isinstance(base, dist.Delta):
        return -p.log_prob(base.v)
    if type(base) is not dist.Normal or q.event_shape != p.event_shape:
        raise NotImplementedError
    kl = p.kl_from(base.loc, base.scale)
    return kl.expand(torch.broadcast_shapes(kl.shape, p.batch_shape))


class DepthProcess:
    """``e_j ~ GP(m_j, σ² k(l, l'))``: each entry of a weight is a process over the number l of its layer.

    Over the L layers of a site that is ``vec E ~ N(m, K ⊗ σ² I)`` (:class:`CorrelatedLayers`) with
    ``K_ll' = k(|l − l'| / ℓ)`` for layers of one kind, as all query projections are, and 0 between kinds. l is the
    first number in a layer's path, 3 in ``encoder.layer.3.attention.self.query``. ℓ → 0 is the independent prior
    N(m, σ²), exactly; ℓ → ∞ ties the layers together.

    ℓ is fixed, or has the prior ``log ℓ ~ N(log ℓ₀, spread²)`` and is inferred with the weights by a guide that serves
    hyper-parameters, such as ``MeanField``, as the site ``depth.log_ratio``, log(ℓ/ℓ₀), one for all sites of a model.
    The KL is closed for a mean-field posterior and a point; others score draws.

    Args:
        lengthscale: ℓ, or ℓ₀, in layers; 0 makes layers independent.
        scale: σ, the standard deviation of an entry.
        kernel: k, see :class:`bayes_adapters.kernels.Kernel`. The smooth ones add 1e-6 to the diagonal of K, and divide
            by 1 + 1e-6.
        identity: m is I for square weights, so that the prior adapter is plain LoRA, rather than 0.
        spread: standard deviation of log ℓ; None fixes ℓ.

    Raises:
        ConfigError: an option is out of range; or, of a model, its random parts are no weights, or stand in one site
            per layer (``grouped=False``).

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, guides, models
    >>> sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    >>> net = BertModel(BertConfig(vocab_size=20, **sizes))
    >>> options = {"targets": ["query"], "rank": 2, "granularity": "global", "num_data": 10}
    >>> model = models.StochasticCore(net, Bernoulli(), prior=DepthProcess(2.0), **options)
    >>> guide = guides.MeanField(model)
    >>> prior = model.prior.of(model.sites[0])
    >>> (prior.scale_tril @ prior.scale_tril.mT)[0]
    tensor([1.0000, 0.6065, 0.3679])
    """

    name: ClassVar[str] = "depth_process"
    takes_site: ClassVar[bool] = True
    """The prior is called with the site, for its layers' paths."""

    def __init__(
        self,
        lengthscale: float = 2.0,
        scale: float = 0.2,
        *,
        kernel: Kernel | str = Kernel.MATERN12,
        identity: bool = False,
        spread: float | None = None,
    ) -> None:
        self.lengthscale, self.scale, self.identity, self.spread = lengthscale, scale, identity, spread
        self.kernel = choice(Kernel, "kernel", kernel)
        require_depth(lengthscale, scale, spread)

    def __call__(self, site: Site) -> CorrelatedLayers:
        """Return the prior of all layers of ``site``; samples the length scale where it is learned."""
        require_layers(site)
        loc = torch.zeros(site.shape)
        if self.identity:
            require_square(site)
            loc = torch.eye(site.event[0]).expand(site.shape)
        ratio = torch.zeros(())
        if self.spread is not None:
            ratio = pyro.sample("depth.log_ratio", dist.Normal(torch.zeros(()), torch.tensor(float(self.spread))))
        correlation = self._correlation(site, self.lengthscale * float64(ratio).exp())
        scale_tril = torch.linalg.cholesky(correlation).to(loc)
        return CorrelatedLayers(loc.contiguous(), scale_tril, torch.tensor(float(self.scale)), validate_args=False)

    def _correlation(self, site: Site, lengthscale: Tensor) -> Float[Tensor, "L L"]:
        """K, float64."""
        kinds = [_NUMBER.sub("#", path, count=1) for path in site.layers]
        found = [_NUMBER.search(path) for path in site.layers]
        depth = lengthscale.new_tensor([float(match.group()) if match else 0.0 for match in found])
        apart = (depth[:, None] - depth).abs()
        alike = torch.tensor([[a == b for b in kinds] for a in kinds], device=depth.device)
        distance = torch.where(apart > 0, apart / lengthscale, 0.0) if self.lengthscale > 0 else apart * math.inf
        distance = torch.where(alike, distance.nan_to_num(nan=0.0), math.inf).to(depth)
        jitter = 0.0 if self.kernel is Kernel.MATERN12 else _JITTER
        return (self.kernel(distance) + jitter * torch.eye(len(depth)).to(depth)) / (1.0 + jitter)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {
            "lengthscale": self.lengthscale,
            "scale": self.scale,
            "kernel": self.kernel.value,
            "identity": self.identity,
            "spread": self.spread,
        }
