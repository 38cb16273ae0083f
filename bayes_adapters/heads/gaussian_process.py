"""A head that is a sparse variational Gaussian process on pooled hidden states: uncertain far from its data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import choice, positive_number, whole_number
from bayes_adapters.heads._checks import (
    require_between_0_and_1,
    require_gpytorch,
    require_one_per_example,
    require_positive_definite,
    require_rows_alone,
)
from bayes_adapters.heads._expectation import expected_log_density
from bayes_adapters.heads.distance_preserving import DistancePreserving
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior
from bayes_adapters.kernels import Kernel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import OF_WEIGHTS, Granularity, Part, Site, SiteCall

INDUCING = "head.inducing"
"""The sample site of the whitened values at the inducing points."""
_REST = "head.rest"


class _Terms(NamedTuple):
    """What f has in common under every u, C outputs of R rows.

    Args:
        prior: m(φ), shape (C, R).
        weights: ``A = L⁻¹ k(Z, φ)``, shape (C, M, R).
        rest: ``k(φ, φ) − Σ_m A²``, the variance that u leaves, shape (C, R).
    """

    prior: Float[Tensor, "C R"]
    weights: Float[Tensor, "C M R"]
    rest: Float[Tensor, "C R"]


class InducingPosterior(HeadPosterior):
    """``q(u) = N(μ, T Tᵀ)`` for each output: gpytorch's ``CholeskyVariationalDistribution``, at N(0, I) to start with.

    Its parameters are ``u.variational_mean``, μ, shape (C, M), and ``u.chol_variational_covar``, shape (C, M, M), whose
    lower triangle is T.
    """

    def __init__(self, outputs: int, num_inducing: int) -> None:
        super().__init__()
        variational = require_gpytorch(type(self).__name__).variational
        self.u = variational.CholeskyVariationalDistribution(num_inducing, batch_shape=torch.Size([outputs]))

    def forward(self, call: SiteCall) -> TorchDistributionMixin:
        return self.q().to_event(1)

    def q(self) -> TorchDistributionMixin:
        """Return the distribution over u: batch shape (C,), event shape (M,)."""
        factor = self.u.chol_variational_covar.tril()
        # torch takes the logarithm of the diagonal; turning columns of T changes no covariance
        sign = torch.where(factor.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
        factor = factor * sign[..., None, :]
        return dist.MultivariateNormal(self.u.variational_mean, scale_tril=factor, validate_args=False)


class GaussianProcessHead(Head):
    """``f_c ~ GP(m_c, k_c(φ, φ'))``, φ the pooled hidden states: a sparse variational GP for each output c.

    Formula, with M inducing points Z in the space of φ, ``L Lᵀ = k(Z, Z) + jitter I`` and ``A = L⁻¹ k(Z, φ)``::

        f(Z) = m + L u,   p(u) = N(0, I),   q(u) = N(μ, T Tᵀ),   T lower triangular, M × M      (for each output)
        f(φ) | u  ~  N(m + Aᵀ u,  k(φ, φ) + jitter − AᵀA)
        q(f(φ))   =  N(m + Aᵀ μ,  k(φ, φ) + jitter − AᵀA + AᵀT TᵀA)
        ELBO/N    =  (1/B) Σ_b E_q(f_b) log p(y_b | f_b)  −  (w/N) Σ_c KL(q(u_c) ‖ N(0, I))

    This is gpytorch's ``VariationalStrategy`` with a ``CholeskyVariationalDistribution``; :meth:`process` returns it.
    Kernel, inducing points and adapters train together in one ELBO, whatever the guide of the adapters, which holds
    q(u) as ``guide.head_posterior``. The expectation is exact for Gaussian noise, by 20 Gauss–Hermite nodes for other
    likelihoods with one term per output, and the mean of ``draws`` draws of f for classes. A prediction's draw is one u
    for all inputs, and an f(φ) given u.

    Far from the inducing points A → 0 and f returns to its prior, so epistemic uncertainty grows with the distance of
    features. That is of use as far as the features keep unlike inputs apart. With ``hidden`` a trained block stands
    between them and the process that keeps distances up to a factor 1 ± ``bound``, and φ above is what it returns
    (:class:`~bayes_adapters.heads.distance_preserving.DistancePreserving`). Inducing points start at N(0, I) and the
    length scale at √d: take both from data by :func:`bayes_adapters.training.inducing.initialise`. q(u) starts at its
    prior and has farther to go than adapters have: give head and posterior a learning rate of their own, .02 of Adam.

    Kernel matrices are float64 where the device has it, and float32 on Apple's. Means, length scales and variances
    k(φ, φ) are each output's own; Z is shared by all.

    Sources: Hensman et al. 2015, arXiv 1411.2005; deep kernels Wilson et al. 2016, arXiv 1511.02222.

    Args:
        num_inducing: M.
        kernel: k, see :class:`bayes_adapters.kernels.Kernel`.
        lengthscale: where the length scale starts, in units of the features; None is √d.
        ard: whether every feature has a length scale of its own.
        draws: of f for each example in a training step, where the expectation has no closed form.
        hidden: hidden units of the block before the process; None is no block.
        bound: its c, between 0 and 1; None is a plain layer, ``φ ← relu(V φ + b)`` with ``hidden`` numbers, which may
            merge unlike inputs: take it where the features alone do not hold the answer, as in late fusion.
        pooling: see :class:`Pooling`; None is the mean.

    Raises:
        MissingResourceError: gpytorch, which the extra ``gp`` brings, is not installed.
        ConfigError: an option is out of range, or the likelihood has one target per token or compares rows: given u,
            each row's f is drawn apart, and its own expectation is taken.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import ELBO, Batch, Categorical, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Categorical(3), rank=2, head=GaussianProcessHead(4), num_data=2)
    >>> guide, batch = Delta(model), Batch({"input_ids": torch.randint(20, (2, 5))}, torch.tensor([0, 2]))
    >>> ELBO(model, guide)(batch).requires_grad, bool((predict(model, guide, batch).epistemic > 0).all())
    (True, True)
    """

    name: ClassVar[str] = "gaussian_process"

    def __init__(
        self,
        num_inducing: int = 64,
        *,
        kernel: Kernel | str = Kernel.RBF,
        lengthscale: float | None = None,
        ard: bool = False,
        draws: int = 8,
        hidden: int | None = None,
        bound: float | None = 0.9,
        pooling: Pooling | str | None = None,
    ) -> None:
        require_gpytorch(type(self).__name__)
        super().__init__(pooling)
        whole_number("num_inducing", num_inducing)
        whole_number("draws", draws)
        whole_number("hidden", 1 if hidden is None else hidden)
        if bound is not None:
            require_between_0_and_1("bound", bound)
        if lengthscale is not None:
            positive_number("lengthscale", lengthscale)
        self.num_inducing, self.lengthscale, self.ard, self.draws = num_inducing, lengthscale, ard, draws
        self.hidden, self.bound = hidden, bound
        self.kernel_name = choice(Kernel, "kernel", kernel)

    def suit(self, likelihood: Likelihood) -> None:
        require_one_per_example(type(self).__name__, likelihood, likelihood.per_token or self.per_token)
        require_rows_alone(type(self).__name__, likelihood)
        super().suit(likelihood)

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        event = (likelihood.num_outputs, self.num_inducing)
        return [Site(INDUCING, Part.FACTOR, (INDUCING,), event, Granularity.GLOBAL)]

    def prior(self, site: Site) -> TorchDistributionMixin:
        eye = torch.eye(site.event[1]).repeat(site.event[0], 1, 1)
        return dist.MultivariateNormal(torch.zeros(site.event), scale_tril=eye)

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        return InducingPosterior(*sites[0].event)

    def build(self, width: int, likelihood: Likelihood) -> None:
        gpytorch = require_gpytorch(type(self).__name__)
        self.block: nn.Module | None = None
        if self.hidden is not None and self.bound is not None:
            self.block = DistancePreserving(width, self.hidden, self.bound)
        elif self.hidden is not None:
            self.block, width = nn.Sequential(nn.Linear(width, self.hidden), nn.ReLU()), self.hidden
        batch = torch.Size([likelihood.num_outputs])
        options: dict[str, Any] = {"batch_shape": batch, "ard_num_dims": width if self.ard else None}
        if self.kernel_name is Kernel.RBF:
            base = gpytorch.kernels.RBFKernel(**options)
        else:
            nu = {Kernel.MATERN12: 0.5, Kernel.MATERN32: 1.5, Kernel.MATERN52: 2.5}[self.kernel_name]
            base = gpytorch.kernels.MaternKernel(nu=nu, **options)
        base.lengthscale = math.sqrt(width) if self.lengthscale is None else self.lengthscale
        self.kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=batch)
        self.kernel.outputscale = 1.0
        self.mean = gpytorch.means.ConstantMean(batch_shape=batch)
        self.inducing_points = nn.Parameter(torch.randn(self.num_inducing, width))

    def forward(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows C"]:
        """Return a draw of f at every row, given the draw of u of its sample."""
        memo = self.current_pass(INDUCING).memo
        terms = memo.once(self, "terms", lambda: self._terms(self.embed(features)))
        u = self.drawn(INDUCING).value.to(terms.prior)
        u = u.reshape(-1, *u.shape[-2:])  # (S, C, M), or one for all rows
        each = terms.weights.unflatten(-1, (len(u), -1))  # rows are [S, B]
        mean = terms.prior + torch.einsum("cmsb,scm->csb", each, u).flatten(1)
        zero = torch.zeros(len(mean), device=mean.device)
        rest = dist.Normal(zero, 1.0, validate_args=False).to_event(1)
        infer: Any = {OF_WEIGHTS: True}
        noise = pyro.sample(_REST, rest, infer=infer)
        f = mean.mT + terms.rest.mT.sqrt() * noise.reshape(-1, len(mean))
        return f.float()

    def expectation(self, likelihood: Likelihood, targets: Any) -> Callable[[], Float[Tensor, " rows"]] | None:
        running, q = self.current_pass(INDUCING), self.drawn(INDUCING).posterior
        terms = running.memo.once(self, "terms", lambda: None)
        if terms is None or q is None:
            return None  # u was conditioned on, or comes from the prior
        outer = running.rows.outer

        def score() -> Tensor:
            mean, variance = (part.float().reshape(*outer, -1, part.shape[-1]) for part in _marginals(terms, q))
            return expected_log_density(likelihood, mean, variance, targets, self.draws).flatten()

        return score

    def embed(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows e"]:
        """Return φ, where the inducing points are: the features, or what the block makes of them."""
        return features if self.block is None else self.block(features.to(next(self.block.parameters()).dtype))

    def moments(
        self, features: Float[Tensor, "rows d"], posterior: InducingPosterior
    ) -> tuple[Float[Tensor, "rows C"], Float[Tensor, "rows C"]]:
        """Return mean and variance of q(f) at every row, in closed form; float64 where the device has it.

        Args:
            features: shape (rows, d).
            posterior: ``guide.head_posterior``.
        """
        return _marginals(self._terms(self.embed(features)), posterior.q())

    def process(self, posterior: InducingPosterior) -> Any:
        """Return the process as gpytorch has it, an ``ApproximateGP`` on the parameters of head and posterior.

        ``process(guide.head_posterior)(head.embed(features))`` is its ``MultitaskMultivariateNormal`` over (rows, C).
        """
        gpytorch = require_gpytorch("GaussianProcessHead.process()")
        head, variational = self, gpytorch.variational

        class Process(gpytorch.models.ApproximateGP):  # type: ignore[misc]
            def __init__(self) -> None:
                strategy = variational.VariationalStrategy(self, head.inducing_points, posterior.u)
                strategy.inducing_points = head.inducing_points  # the strategy has made a copy
                strategy.variational_params_initialized.fill_(1)
                tasks = len(posterior.u.variational_mean)
                super().__init__(variational.IndependentMultitaskVariationalStrategy(strategy, num_tasks=tasks))
                self.mean_module, self.covar_module = head.mean, head.kernel

            def forward(self, x: Tensor) -> Any:
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        return Process().train(self.training)

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "num_inducing": self.num_inducing,
            "kernel": self.kernel_name.value,
            "lengthscale": self.lengthscale,
            "ard": self.ard,
            "draws": self.draws,
            "hidden": self.hidden,
            "bound": self.bound,
        }

    def _terms(self, phi: Float[Tensor, "rows d"]) -> _Terms:
        gpytorch = require_gpytorch(type(self).__name__)
        wide = torch.float32 if phi.device.type == "mps" else torch.float64
        x, z = phi.to(wide), self.inducing_points.to(wide)
        jitter = gpytorch.settings.variational_cholesky_jitter.value(wide)
        eye = torch.eye(len(z), dtype=wide, device=z.device)
        factor, failed = torch.linalg.cholesky_ex(self.kernel(z).to_dense() + jitter * eye)
        require_positive_definite(failed, self.kernel)
        weights = torch.linalg.solve_triangular(factor, self.kernel(z, x).to_dense(), upper=False)
        rest = self.kernel(x, diag=True) + jitter - weights.square().sum(-2)
        return _Terms(self.mean(x).to(wide), weights, rest.clamp_min(0.5 * jitter))  # it is ≥ jitter but for rounding


def _marginals(terms: _Terms, q: Any) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R C"]]:
    """Mean and variance of q(f), q being that of u."""
    normal = base_distribution(q)
    factor = normal.scale_tril.to(terms.weights)
    mean = terms.prior + torch.einsum("cmr,cm->cr", terms.weights, normal.loc.to(factor))
    variance = terms.rest + (factor.mT @ terms.weights).square().sum(-2)
    return mean.mT, variance.mT
