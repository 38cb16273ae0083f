"""A posterior's density against its own draws, mean and inverse CDF.

Where entries are independent, each is a density on the line. With F the integral of ``exp(log_prob)``: F(∞) = 1, draws
x have F(x) uniform, and F(F⁻¹(u)) = u. Where they depend on each other, draws w stand in the integral's place: for a
density that vanishes at infinity E[∂_j log q] = 0 and E[(w_i − μ_i) ∂_j log q] = −δ_ij (Stein).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from bayes_adapters.distributions import base_distribution
from bayes_adapters.sites import SITE
from bayes_adapters.testing._quadrature import DRAWS, GRID, axis, log_density
from bayes_adapters.testing.case import Case, latents, seeded
from bayes_adapters.testing.report import CheckError, NotApplicableError

_DEVIATIONS = 2.5
"""Largest √n · |F_n − F| of Kolmogorov's statistic: exceeded by chance once in 130 000 times."""


def check_density(case: Case) -> str:
    """Check that ``log_prob``, ``sample``, ``mean`` and ``icdf`` of every posterior are those of one distribution.

    The draws are those of the distribution, and those that the guide makes in its passes.

    Raises:
        CheckError: they are not.
        NotApplicableError: every posterior is a point.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_density(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))[:42]
    '1 posteriors: draws, mean and icdf are tho'
    """
    model, guide = case.build()
    _, single = latents(model, guide, case.batch)
    _, many = latents(model, guide, case.batch, draws=200, seed=1)
    seen, worst = 0, 0.0
    for name, node in single.items():
        base = base_distribution(node["fn"])
        if type(base).__name__ == "Delta" or _is_of_points(base):
            continue  # a point, or a part of the joint draw, or one of several points
        seen += 1
        drawn = many[name]["value"]
        if _depends_on_draws(many[name]):
            drawn = None  # its own parameters differ from draw to draw, as upstream draws do
        if isinstance(base, Bernoulli):
            _check_coin(name, base, drawn)
        elif base.event_shape:
            worst = max(worst, _check_joint(name, node["fn"], drawn))
        else:
            worst = max(worst, _check_entries(name, base, drawn))
    if not seen:
        raise NotApplicableError(f"Every posterior of {type(guide).__name__} is a point.")
    return (
        f"{seen} posteriors: draws, mean and icdf are those of log_prob; {100 * worst:.0f} % of the tolerance is used."
    )


@torch.no_grad()
def _is_of_points(base: Any) -> bool:
    """Whether draws repeat, as those of an ensemble do: there is no density."""
    if not base.event_shape:
        return False
    with seeded(3):
        draws = base.sample((50,)).reshape(50, -1)
    return len(draws.unique(dim=0)) < 50


def _depends_on_draws(node: Any) -> bool:
    call = node["infer"].get(SITE)
    feature = None if call is None else call.feature
    return feature is not None and bool((feature - feature[:1]).abs().max() > 1e-6)


# ---- independent entries ----


@torch.no_grad()
def _check_entries(name: str, base: Any, drawn: Tensor | None) -> float:
    family = type(base).__name__
    with seeded(3):
        drawn_here = base.sample((DRAWS,))
    own = drawn_here.double()
    if bool((own.std(0) < 1e-4 * own.abs().mean(0)).all()):
        return 0.0  # float32 cannot tell its draws apart: all but a point
    grid = axis(own)
    step = grid[1] - grid[0]
    density = log_density(base, grid.to(drawn_here.dtype)).double().exp()
    below = (torch.cumsum(density, 0) - density / 2) * step
    total = below[-1] + density[-1] * step / 2

    def cdf(x: Tensor) -> Tensor:
        place = ((x - grid[0]) / step).clamp(0, GRID - 1.001)
        index = place.long()
        low, high = below.gather(0, index), below.gather(0, index + 1)
        return low + (high - low) * (place - index)

    gap = float((total - 1).abs().max())
    if gap > 0.01:
        raise CheckError(
            f"exp(log_prob) of {name!r} ({family}) integrates to 1 ± {gap:.3g} over the range of its draws.",
            "a density integrates to 1 where its draws are.",
            "log_prob lacks a normalising term, or the draws come from elsewhere than the density says.",
        )
    worst = 0.0
    for what, draws in (("sample()", own), ("the guide's passes", drawn)):
        if draws is None:
            continue
        values = draws.double().expand(draws.shape[0], *torch.broadcast_shapes(draws.shape[1:], own.shape[1:]))
        values = values.reshape(draws.shape[0], *own.shape[1:]) if values[0].numel() == own[0].numel() else values
        u = cdf(values)
        statistic = max(_kolmogorov(u.flatten()), *(_kolmogorov(one) for one in u.flatten(1).T[:16]))
        worst = max(worst, statistic / _DEVIATIONS)
        if statistic > _DEVIATIONS:
            spread = float(draws.double().std(0).mean())
            deviation = float((((grid - own.mean(0)) ** 2 * density).sum(0) * step).sqrt().mean())
            raise CheckError(
                f"draws of {name!r} from {what} do not follow its log_prob ({family}): √n·|F_n − F| is "
                f"{statistic:.3g}; their deviation is {spread:.4g}, and that of the density {deviation:.4g}.",
                f"draws have the density that the KL is computed with; the statistic stays below {_DEVIATIONS}.",
                "rsample() and log_prob() of the distribution use other parameters, or the guide sets the value of the "
                "sample statement itself.",
            )
    mean = _known(lambda: base.mean)
    right = (grid * density).sum(0) * step
    if mean is not None and float(((mean - right).abs() / own.std(0)).max()) > 0.02:
        raise CheckError(
            f"the mean of {name!r} ({family}) is off by {float((mean - right).abs().max()):.3g} from that of log_prob.",
            "mean is the integral of x q(x): mean_only and to_lora use it.",
            "the property mean returns a mode, a median or a parameter of another meaning.",
        )
    u = torch.linspace(0.05, 0.95, 7).reshape(-1, *[1] * (own.dim() - 1)).expand(7, *own.shape[1:])
    inverse = _known(lambda: base.icdf(u))
    if inverse is not None and float((cdf(inverse.double()) - u).abs().max()) > 5e-3:
        raise CheckError(
            f"F(icdf(u)) of {name!r} ({family}) is off by {float((cdf(inverse.double()) - u).abs().max()):.3g}.",
            "icdf is the inverse of the integral of the density: predict() draws with it.",
            "icdf() uses other parameters than log_prob(), or is that of the base class.",
        )
    return worst


def _known(compute: Any) -> Any:
    try:
        return compute()
    except NotImplementedError:
        return None


def _kolmogorov(u: Tensor) -> float:
    """√n times the largest distance of the empirical distribution of ``u`` from the uniform one."""
    ranked, n = u.sort().values, len(u)
    steps = torch.arange(n + 1, dtype=u.dtype) / n
    return float(torch.maximum(steps[1:] - ranked, ranked - steps[:-1]).max()) * n**0.5


@torch.no_grad()
def _check_coin(name: str, base: Any, drawn: Tensor | None) -> None:
    with seeded(3):
        own = base.sample((DRAWS,))
    p = base.log_prob(torch.ones_like(base.probs)).exp()
    for draws in (own, drawn):
        if draws is not None:
            error = (p * (1 - p) / draws.shape[0]).sqrt() + 1e-9
            off = float(((draws.mean(0).reshape(p.shape) - p).abs() / error).max())
            if off > 6.0:
                raise CheckError(
                    f"draws of {name!r} are 1 with a frequency {off:.1f} standard errors off exp(log_prob(1)).",
                    "draws have the probability that log_prob says.",
                    "sample() and log_prob() use other parameters.",
                )


# ---- entries that depend on each other ----


def _check_joint(name: str, q: Any, drawn: Tensor | None) -> float:
    with seeded(3), torch.no_grad():
        w = q.sample((DRAWS,)).reshape(DRAWS, -1)
    others = None if drawn is None else drawn.reshape(drawn.shape[0], -1)
    worst = 0.0
    for what, draws in (("sample()", w), ("the guide's passes", others)):
        if draws is None or draws.shape[1] != w.shape[1]:
            continue
        x = draws.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(q.log_prob(x.reshape(-1, *q.event_shape)).sum(), x)
        x, slope = x.detach().double(), slope.double()
        deviation = x.std(0)
        scaled, centred = slope * deviation, (x - x.mean(0)) / deviation
        products = centred[:, :, None] * scaled[:, None, :]
        right = -torch.eye(x.shape[1], dtype=x.dtype)
        count = len(x) ** 0.5
        off = torch.cat(
            [
                (scaled.mean(0) / scaled.std(0)).abs() * count,
                ((products.mean(0) - right) / products.std(0)).abs().flatten() * count,
            ]
        ).max()
        worst = max(worst, float(off) / 6.0)
        if off > 6.0:
            raise CheckError(
                f"draws of {name!r} from {what} do not follow its log_prob: E[(w_i − μ_i) ∂_j log q] is "
                f"{float(off):.1f} standard errors off −δ_ij; on the diagonal it averages "
                f"{float(products.mean(0).diagonal().mean()):.3g}.",
                "−1 on the diagonal and 0 elsewhere, within 6 standard errors.",
                "rsample() and log_prob() of the distribution use other parameters (a scale, a Cholesky factor that is "
                "transposed, a transform without its log-determinant).",
            )
    return worst
