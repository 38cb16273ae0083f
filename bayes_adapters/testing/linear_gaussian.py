"""A target whose posterior is known: outputs linear in the random part, Gaussian noise, Gaussian prior.

With outputs ``f(w) = f₀ + J w``, noise of variance s² and the prior N(0, I), of weights w in R^D::

    Λ = I + JᵀJ / s²,   m = Λ⁻¹ Jᵀ(y − f₀) / s²,   p(w | y) = N(m, Λ⁻¹),   log p(y) = log N(y; f₀, s² I + J Jᵀ)

The best Gaussian with independent entries has the mean m and the variances 1 / Λ_ii (Bishop 2006, 10.1.2); the best
one of full covariance is the posterior. Local latents have all this per example, with one row of J each. For any q::

    log p(y) = ELBO(q) + KL(q ‖ p(w | y))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Gaussian
from bayes_adapters.models.diagonal_core import DiagonalCore
from bayes_adapters.models.stochastic_core import StochasticCore
from bayes_adapters.models.stochastic_down import StochasticDown
from bayes_adapters.sites import Granularity, Part, Site
from bayes_adapters.testing.case import CONTEXT_WIDTH, Case, seeded
from bayes_adapters.testing.report import NotApplicableError

_EXAMPLES, _TOKENS, _NOISE = 12, 2, 0.5


class OneLayer(nn.Module):
    """A backbone of one linear layer 4 → 3, so that outputs are linear in whatever part of its adapter is random."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=3)
        self.query = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        """Return the hidden states, shape (B, T, 3)."""
        return SimpleNamespace(last_hidden_state=self.query(x))


@dataclass(frozen=True)
class LinearGaussian:
    """One adapted layer with a random core, diagonal or A, twelve examples of two tokens, noise of deviation 0.5.

    Args:
        part: the random part: ``Part.CORE``, ``Part.DIAGONAL`` or ``Part.A``.
        granularity: of the part; cores may be local.
        seed: of the layer and the data.

    >>> target = LinearGaussian(Part.CORE, Granularity.GLOBAL)
    >>> target.precision.shape, bool(target.log_evidence < 0)
    (torch.Size([1, 4, 4]), True)
    """

    part: Part
    granularity: Granularity
    seed: int = 1

    @classmethod
    def like(cls, case: Case) -> LinearGaussian:
        """Return the target for the random part of a case's model.

        Raises:
            NotApplicableError: the model has other parts, or several: no posterior is known then.
        """
        model = case.model()
        kinds = {(site.part, site.granularity) for site in model.sites}
        if len(kinds) != 1 or model.prior.hyper_sites or model.head_sites:
            raise NotApplicableError("Outputs are not linear in several random parts together: no posterior is known.")
        ((part, granularity),) = kinds
        if part not in _MODELS or (part != Part.CORE and granularity is not Granularity.GLOBAL):
            raise NotApplicableError(f"There is no target with a known posterior for a random {part.name}.")
        return cls(part, granularity)

    def make_model(self) -> AdapterModel:
        """Return the model, of which only the random part is not frozen: N is the number of examples."""
        with seeded(self.seed):
            options: dict[str, Any] = {"targets": ["query"], "rank": 2, "alpha": 2.0, "num_data": _EXAMPLES}
            if self.part == Part.CORE:
                options["granularity"] = self.granularity
            likelihood, prior = Gaussian(math.log(_NOISE)), dist.Normal(0.0, 1.0)
            model = _MODELS[self.part](OneLayer(), likelihood, prior=prior, **options)
            with torch.no_grad():
                model.backbone.get_parameter("query.lora_B").normal_(0.0, 1.0)
                model.head.get_parameter("weight").fill_(1.0)
        return model.requires_grad_(False)

    @cached_property
    def batch(self) -> Batch:
        """All examples, with targets drawn from the model; frames of a context, which outputs do not depend on."""
        with seeded(self.seed + 1):
            x = torch.randn(_EXAMPLES, _TOKENS, 4)
            frames = Frames(torch.randn(_EXAMPLES, 3, CONTEXT_WIDTH), torch.ones(_EXAMPLES, 3, dtype=torch.bool))
        empty = Batch({"x": x}, torch.zeros(_EXAMPLES), {"audio": frames}, torch.arange(_EXAMPLES))
        return replace(empty, targets=self.simulate(self.seed + 2, _affine(self.make_model(), empty))[1])

    @cached_property
    def _map(self) -> tuple[Tensor, Tensor]:
        return _affine(self.make_model(), self.batch)

    @property
    def local(self) -> bool:
        """Whether each example has latents of its own."""
        return self.granularity is not Granularity.GLOBAL

    def simulate(self, seed: int, affine: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return latents from the prior, shape (1 or B, D), and targets from the model, shape (B,), float32."""
        start, slopes = affine or self._map
        with seeded(seed):
            w = torch.randn(len(slopes) if self.local else 1, slopes.shape[1]).double()
            noise = _NOISE * torch.randn(len(start)).double()
        return w, (start + (slopes * w).sum(1) + noise).float()

    @property
    def precision(self) -> Tensor:
        """Λ, shape (1, D, D), or (B, D, D) of local latents; float64."""
        slopes = self._map[1]
        outer = slopes[:, :, None] * slopes[:, None, :] if self.local else (slopes.T @ slopes)[None]
        return torch.eye(slopes.shape[1], dtype=slopes.dtype) + outer / _NOISE**2

    @property
    def mean(self) -> Tensor:
        """The posterior mean m, shape (1, D) or (B, D); float64."""
        start, slopes = self._map
        rest = (self.batch.targets - start)[:, None]  # type: ignore[operator]
        shift = slopes * rest if self.local else (slopes * rest).sum(0, keepdim=True)
        return torch.linalg.solve(self.precision, shift / _NOISE**2)

    @property
    def log_evidence(self) -> float:
        """Log p(y) in nats, of all examples together."""
        start, slopes = self._map
        y = self.batch.targets.double()  # type: ignore[union-attr]
        if self.local:
            scale = (_NOISE**2 + slopes.square().sum(1)).sqrt()
            return float(torch.distributions.Normal(start, scale).log_prob(y).sum())
        covariance = _NOISE**2 * torch.eye(len(y), dtype=slopes.dtype) + slopes @ slopes.T
        return float(torch.distributions.MultivariateNormal(start, covariance).log_prob(y))

    def kl_to_posterior(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return KL(q ‖ p(w | y)) of a Gaussian q, in nats, summed over examples.

        Args:
            mean: of q, shape (1 or B, D).
            covariance: of q, shape (1 or B, D, D).
        """
        precision, off = self.precision, mean - self.mean
        inside = (precision * covariance).sum((-1, -2)) + (off[:, None] @ precision @ off[..., None])[:, 0, 0]
        return (0.5 * (inside - mean.shape[1] - torch.logdet(precision) - torch.logdet(covariance))).sum()


_MODELS: dict[Part, Any] = {Part.CORE: StochasticCore, Part.DIAGONAL: DiagonalCore, Part.A: StochasticDown}


def the_site(model: AdapterModel) -> Site:
    """Return the one site of a linear-Gaussian target."""
    (site,) = model.sites
    return site


@torch.no_grad()
def _affine(model: AdapterModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """f₀, shape (B,), and J, shape (B, D), by one pass per column: outputs are affine in the latents."""
    name = the_site(model).name
    nodes: dict[str, Any] = poutine.trace(model).get_trace(batch).nodes
    shape = nodes[name]["value"].shape
    local = the_site(model).granularity is not Granularity.GLOBAL
    size = shape[1:].numel() if local else shape.numel()

    def outputs(w: Tensor) -> Tensor:
        value = w.expand(shape[0], size).reshape(shape) if local else w.reshape(shape)
        return poutine.condition(model, {name: value})(batch)[:, 0].double()

    start = outputs(torch.zeros(size))
    return start, torch.stack([outputs(one) - start for one in torch.eye(size)], 1)
