"""Distributions that Pyro lacks: the scale-free prior of variational dropout, and labels of a sequence's tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, constraints
from torch.distributions.kl import register_kl
from torch.nn import functional as F

from bayes_adapters.errors import ConfigError

IGNORED = -100
"""The target of a token without a label, as Hugging Face collators have it."""

_NONE = torch.Size()
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


class LogUniform(TorchDistribution):
    """The improper prior ``p(w) ∝ 1/|w|``: uniform in log |w|, the same at every scale.

    Density, unnormalised: ``log p(w) = −½ log(w² + eps)``. It has no draws. The KL from a Gaussian N(μ, σ²) depends on
    ``α = σ² / (μ² + eps)`` only and is known up to a constant, chosen so that it tends to 0 as α → ∞::

        KL ≈ k₁ − k₁ sigmoid(k₂ + k₃ log α) + ½ log(1 + 1/α),   k = (0.63576, 1.87320, 1.48695)

    Source: Molchanov, Ashukha and Vetrov 2017, arXiv 1701.05369, equation 14.

    Args:
        eps: positive, squared units of w: keeps the density finite at 0; shape = batch shape.

    >>> LogUniform().log_prob(torch.tensor([0.1, 10.0]))
    tensor([ 2.3026, -2.3026])
    """

    arg_constraints = {"eps": constraints.positive}
    support = constraints.real

    def __init__(self, eps: Tensor | float = 1e-8, *, validate_args: bool | None = None) -> None:
        self.eps = torch.as_tensor(eps)
        super().__init__(self.eps.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """0, the centre of symmetry; the integral itself diverges."""
        return torch.zeros_like(self.eps)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogUniform:
        """Return the same prior with another batch shape."""
        return LogUniform(self.eps.expand(torch.Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``−½ log(w² + eps)``, unnormalised."""
        return -0.5 * torch.log(value.square() + self.eps)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Raise: an improper distribution has no draws.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "The log-uniform prior p(w) ∝ 1/|w| is improper and has no draws, so the model cannot run by itself, and "
            "guides whose locations start at a draw of the prior (cores, diagonals) cannot start. It is for a random A "
            "and B: StochasticFactors under the guide RankWise or MeanField."
        )

    rsample = sample


@register_kl(Normal, LogUniform)  # type: ignore[untyped-decorator]
def _kl_normal_log_uniform(q: Normal, p: LogUniform) -> Tensor:
    log_alpha = 2.0 * q.scale.log() - torch.log(q.loc.square() + p.eps)
    return _K1 - _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)


class TokenLabels(TorchDistribution):
    """One class for every real token of a sequence; given the outputs, tokens are independent.

    Density: ``log p(y) = Σ_t [token t is real, y_t ≠ −100] log softmax(f_t)[y_t]``. A token whose label is −100
    (:data:`IGNORED`) is summed over, not scored. Draws have −100 at padding.

    Args:
        logits: f, shape (*batch, T, C).
        real: shape (*batch, T) or broadcastable to it, True where a token is real; None where all are.

    >>> labels = TokenLabels(torch.zeros(1, 3, 4), torch.tensor([[True, True, False]]))
    >>> labels.log_prob(torch.tensor([[2, -100, 1]])).exp()
    tensor([0.2500])
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 2)}
    support = constraints.independent(constraints.integer_interval(IGNORED, 2**31 - 1), 1)

    def __init__(
        self,
        logits: Float[Tensor, "*batch T C"],
        real: Bool[Tensor, "... T"] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = logits - logits.logsumexp(-1, keepdim=True)
        every = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        self.real = every if real is None else real.expand(every.shape)
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=validate_args)

    @property
    def probs(self) -> Float[Tensor, "*batch T C"]:
        """Class probabilities of each token; zero at padding."""
        return self.logits.exp() * self.real[..., None]

    @property
    def mean(self) -> Float[Tensor, "*batch T C"]:
        """``probs``: the expectation of the labels as one-hot vectors."""
        return self.probs

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenLabels:
        """Return the same labels with another batch shape."""
        shape = torch.Size(batch_shape)
        logits = self.logits.expand(shape + self.logits.shape[-2:])
        return TokenLabels(logits, self.real.expand(logits.shape[:-1]), validate_args=False)

    def log_prob(self, value: Int[Tensor, "... T"]) -> Float[Tensor, "..."]:
        """Return the log density of the labels ``value``, shape = batch shape; what padding holds does not matter."""
        scored = self.real & (value != IGNORED)
        index = torch.where(scored, value, 0)[..., None]
        logits = self.logits.expand(*index.shape[:-1], -1)
        return torch.where(scored, logits.gather(-1, index)[..., 0], 0.0).sum(-1)

    def sample(self, sample_shape: Any = None) -> Int[Tensor, "... T"]:
        """Draw labels, −100 at padding."""
        drawn = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape or ()))
        return torch.where(self.real, drawn, IGNORED)


class Points(TorchDistribution):
    """``q(w) = (1/S) Σ_s δ(w − w_s)``: S stored points in R^D, each as likely as the others.

    Density with respect to the counting measure on them: ``log q(w_s) = −log S``. So in an ELBO, where the points are
    fixed, the "KL" is ``−log S − log p(w_s)`` at the draw, a constant of everything that is trained.

    Args:
        values: w_s, shape (S, D).
        batch_shape: of independent draws.

    >>> Points(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).mean
    tensor([1., 2.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        values: Float[Tensor, "S D"],
        batch_shape: torch.Size = _NONE,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.values = values
        super().__init__(batch_shape, values.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """The average of the points."""
        return self.values.mean(0).expand(self.shape())

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """The average squared distance from it, entry by entry."""
        return self.values.var(0, correction=0).expand(self.shape())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Points:
        """Return the same points with another batch shape."""
        return Points(self.values, torch.Size(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return −log S for every draw; what is none of the points is not looked for."""
        return value.new_full(value.shape[:-1], -math.log(len(self.values)))

    def sample(self, sample_shape: Any = None) -> Float[Tensor, "... D"]:
        """Draw points, with replacement."""
        shape = torch.Size(sample_shape or ()) + self.batch_shape
        return self.values[torch.randint(len(self.values), shape, device=self.values.device)]

    def numbered(self, seed: int, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Return the points of draws with these numbers: in an order that depends on the seed, each once in S draws."""
        count = len(self.values)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % (1 << 63)), device="cpu")
        return self.values[order.to(numbers.device)[numbers % count].to(self.values.device)]


def base_distribution(fn: Any) -> Any:
    """Return the elementwise distribution inside ``Independent``, mask and expansion wrappers."""
    while hasattr(fn, "base_dist") and type(fn).__name__ in (
        "Independent",
        "MaskedDistribution",
        "ExpandedDistribution",
    ):
        fn = fn.base_dist
    return fn


def mean_of(fn: Any, name: str) -> Tensor:
    """Return the mean of the distribution of the site ``name``; raise :class:`ConfigError` if it is not known."""
    try:
        mean: Tensor = fn.mean
    except NotImplementedError:
        raise ConfigError(
            f"The mean of {type(base_distribution(fn)).__name__}, the distribution of {name!r}, is not known, and "
            "mean_only, flipout and to_lora need it. Do without them, or take another family, such as Normal."
        ) from None
    return mean


def device_of(fn: Any) -> torch.device:
    """Return the device that the parameters of the distribution ``fn`` are on."""
    base = base_distribution(fn)
    for value in vars(base).values():
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, torch.distributions.Distribution):  # LogNormal, Beta and transformed ones hold another
            return device_of(value)
    mean: Tensor = fn.mean
    return mean.device


def from_uniforms(fn: Any, uniforms: Callable[[int], Float[Tensor, "S 1 n"]]) -> Tensor:
    """Return draws of ``fn`` that are a function of uniforms, for entries that may depend on each other.

    A Gaussian is ``loc + L Φ⁻¹(u)``, of low rank ``loc + W Φ⁻¹(u) + √d Φ⁻¹(u')``; a transformed distribution transforms
    draws of its base; a family with a method ``from_uniforms`` says it itself; any other needs an inverse CDF, entry by
    entry.

    Args:
        fn: batch shape (S, 1); of a Gaussian with entries that depend on each other these are along the last axis.
        uniforms: n → uniforms in (0, 1), shape (S, 1, n).

    Returns:
        Shape ``fn.shape()``.

    Raises:
        ConfigError: the family is none of these.
    """
    base = base_distribution(fn)
    if hasattr(base, "from_uniforms"):
        own: Tensor = base.from_uniforms(fn.shape(), uniforms)
        return own
    if isinstance(base, torch.distributions.LowRankMultivariateNormal):
        factor, deviation = base.cov_factor, base.cov_diag.sqrt()
        lead, count = fn.shape()[:-1], factor.shape[-1] + deviation.shape[-1]
        noise = torch.special.ndtri(uniforms(lead[2:].numel() * count)).reshape(*lead, count)
        low, rest = noise[..., : factor.shape[-1]], noise[..., factor.shape[-1] :]
        return base.loc + (factor @ low[..., None])[..., 0] + deviation * rest
    if isinstance(base, torch.distributions.MultivariateNormal):
        noise = torch.special.ndtri(uniforms(fn.shape()[2:].numel())).reshape(fn.shape())
        return base.loc + (base.scale_tril @ noise[..., None])[..., 0]
    if isinstance(base, torch.distributions.TransformedDistribution):
        value = from_uniforms(base.base_dist, uniforms)
        for transform in base.transforms:
            value = transform(value)
        return value.reshape(fn.shape())
    return inverse_cdf(fn, uniforms(fn.shape()[2:].numel()).reshape(fn.shape()))


def inverse_cdf(fn: Any, uniform: Tensor) -> Tensor:
    """Return ``F⁻¹(u)`` for every entry of ``fn``: draws that are a function of the uniforms ``u`` in (0, 1).

    Raises:
        ConfigError: the family has no inverse CDF.
    """
    base = base_distribution(fn)
    if type(base).__name__ == "Delta":
        return fn.mean
    if isinstance(base, torch.distributions.Bernoulli):
        return (uniform < base.probs).to(uniform.dtype)
    try:
        return base.icdf(uniform)
    except NotImplementedError:
        raise ConfigError(
            f"{type(base).__name__} has no inverse CDF, which repeatable draws need. Call predict(..., seed=None) "
            "to draw with torch's generator instead; results then depend on the batch size."
        ) from None
