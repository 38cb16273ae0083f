"""How far a context lies from the contexts seen in training, and a posterior that is less sure there.

An amortised posterior is confident wherever its network happens to be, also on recordings unlike any it was trained
on. Here the trust in the context is explicit: a density over frames gives a weight γ in (0, 1], and the posterior
becomes the Gaussian with the moments of the mixture ``γ q + (1 − γ) f``: with probability 1 − γ the network is not to
be believed, and then f is what is left. f is the prior, or a Gaussian as wide as one likes around the posterior's mean:
the first forgets what was heard, the second keeps the best guess and makes its draws disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pyro.distributions as dist
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.data.batch import Frames
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.reliability._checks import check_config, check_missing, check_scale, require_gaussians
from bayes_adapters.reliability.frame_density import FrameDensity
from bayes_adapters.sites import Memo


class Fallback(StrEnum):
    """What is left of a posterior whose context cannot be trusted."""

    WIDEN = "widen"
    """f = N(μ_q, s²): the mean stays, the scale grows to s."""
    PRIOR = "prior"
    """f = N(E_p[E], s²): the prior, or one of another scale s."""


def fall_back(
    posterior: TorchDistributionMixin,
    prior: TorchDistributionMixin,
    weight: Float[Tensor, " B"],
    scale: float | None = None,
    mode: Fallback = Fallback.WIDEN,
) -> TorchDistributionMixin:
    """Return the Gaussian with the moments of ``γ q + (1 − γ) f``, for elementwise Gaussians.

    ``μ = γ μ_q + (1−γ) μ_f``, ``σ² = γ σ_q² + (1−γ) s² + γ (1−γ) (μ_q − μ_f)²``.

    Args:
        posterior: q, Gaussian, batch shape (*S, B, T), event shape (r, r).
        prior: Gaussian that broadcasts to the posterior, one for all draws or one for each.
        weight: γ, shape (B,).
        scale: s, the standard deviation of f; None takes the prior's.
        mode: whether μ_f is the posterior's mean or the prior's.

    Raises:
        ConfigError: posterior or prior is not Gaussian.
    """
    q, p = base_distribution(posterior), base_distribution(prior)
    require_gaussians(q, p)
    gamma = weight[:, None, None, None]
    centre = q.loc if mode is Fallback.WIDEN else p.mean
    variance = gamma * q.scale.square() + (1 - gamma) * (p.variance if scale is None else scale**2)
    variance = variance + gamma * (1 - gamma) * (q.loc - centre).square()
    loc = q.loc if mode is Fallback.WIDEN else gamma * q.loc + (1 - gamma) * centre
    return dist.Normal(loc, variance.sqrt(), validate_args=False).to_event(2)


class Reliability(nn.Module):
    """Makes a guide less sure of contexts unlike those of training; guides that read context take ``reliability=``.

    Formula: ``q ← N(moments of γ q + (1 − γ) f)`` with γ = ``density(frames)``; :func:`fall_back` writes them out.

    Args:
        density: fitted to the training contexts of the guide's modality.
        fallback: ``"widen"``, f = N(μ_q, s²), or ``"prior"``, f = N(E_p[E], s²); see :class:`Fallback`.
        scale: s, a standard deviation; None takes the prior's.
        missing: γ of a context that is absent, 0 to 1. At 1 the guide's learned null context says all there is to say,
            which needs training examples that lack it. Where there were none, an absent context is as foreign as any
            other: take 0.

    Raises:
        ConfigError: ``density`` is no :class:`FrameDensity`, ``fallback`` is unknown, or ``scale`` or ``missing`` is
            out of range.

    >>> Reliability(FrameDensity(context_dim=3, components=1), "prior", scale=1.0).config()
    {'density': {'context_dim': 3, 'components': 1}, 'fallback': 'prior', 'scale': 1.0}
    """

    def __init__(
        self,
        density: FrameDensity,
        fallback: Fallback | str = Fallback.WIDEN,
        scale: float | None = None,
        *,
        missing: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(density, FrameDensity):
            raise ConfigError(
                f"density must be a FrameDensity; got a {type(density).__name__}. Make one with FrameDensity.fit; a "
                "configuration goes to Reliability.from_config."
            )
        check_scale(scale)
        check_missing(missing)
        self.density, self.fallback, self.scale = density, choice(Fallback, "fallback", fallback), scale
        self.missing = float(missing)

    def forward(
        self,
        posterior: TorchDistributionMixin,
        prior: TorchDistributionMixin,
        frames: Frames | None,
        memo: Memo,
    ) -> TorchDistributionMixin:
        """Return ``posterior``, fallen back as far as each example's frames lie from the training contexts.

        Args:
            posterior: q, Gaussian, batch shape (*S, B, T), event shape (r, r).
            prior: Gaussian that broadcasts to the posterior.
            frames: the B contexts; None where the whole batch has none.
            memo: of the forward pass, whose sites share γ: it is computed once.

        Raises:
            ConfigError: the density is not fitted, or a distribution is not Gaussian.
        """
        if frames is None:
            if self.missing == 1.0:
                return posterior
            weight = posterior.mean.new_full((posterior.batch_shape[-2],), self.missing)
        else:
            weight = memo.once(self, "weight", lambda: self._weight(frames))
        return fall_back(posterior, prior, weight, self.scale, self.fallback)

    def _weight(self, frames: Frames) -> Float[Tensor, " B"]:
        """Return γ of every example."""
        weight: Tensor = self.density(frames)
        return weight if self.missing == 1.0 else weight.masked_fill(~frames.present, self.missing)

    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs, as JSON; the density's tensors are saved with the guide's."""
        unusual = {} if self.missing == 1.0 else {"missing": self.missing}
        return {"density": self.density.config(), "fallback": self.fallback.value, "scale": self.scale} | unusual

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Reliability:
        """Build what :meth:`config` describes, with an unfitted density whose tensors are loaded next.

        Raises:
            ConfigError: an entry is missing, surplus, or out of range.
        """
        check_config(config)
        density = FrameDensity(**config["density"])
        return cls(density, config["fallback"], config["scale"], missing=config.get("missing", 1.0))
