"""A guide on a target whose posterior and evidence are known: see :mod:`bayes_adapters.testing.linear_gaussian`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.joint import JOINT
from bayes_adapters.sites import SITE
from bayes_adapters.testing.case import Case, latents, seeded
from bayes_adapters.testing.linear_gaussian import LinearGaussian, the_site
from bayes_adapters.testing.report import CheckError, NotApplicableError

_GAUSSIANS = (
    torch.distributions.Normal,
    torch.distributions.MultivariateNormal,
    torch.distributions.LowRankMultivariateNormal,
)


class Family(StrEnum):
    """Which Gaussians a guide claims to hold, so that the optimum it must reach is known."""

    MEAN_FIELD = "mean_field"
    """Independent entries with free means and variances: the optimum has the variances 1 / Λ_ii."""
    FULL = "full"
    """Every Gaussian over all entries: the optimum is the posterior, and the ELBO the evidence."""


def check_conjugate(case: Case, *, family: Family | str | None = None) -> str:
    """Check the guide's ELBO, its gradient, and the best that the guide can do, on a target with a known posterior.

    For any q: ``ELBO(q) = log p(y) − KL(q ‖ p(w | y))``. So the ELBO never exceeds the evidence, and equals it where q
    is the posterior; and its gradient is that of −KL. Both are compared at the guide's start and, once its parameters
    have minimised that exact KL, there. What is left then must be what the ``family`` leaves, where one is named.

    Args:
        case: its guide and the random part of its model are taken, on a model and data of the target's own.
        family: what the guide claims to hold of weights; None claims nothing.

    Raises:
        CheckError: the loss or its gradient is another one, or the guide does not reach the family's optimum.
        NotApplicableError: no posterior is known for the model's random part, or the guide is a point or no Gaussian.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> case = Case(guides.MeanField, standard_models()["core, global"], standard_batch())
    >>> check_conjugate(case, family="mean_field")[:51]
    'ELBO = log p(y) − KL to the posterior, and so their'
    """
    kind = None if family is None else choice(Family, "family", family)
    target = LinearGaussian.like(case)
    own = replace(case, make_model=target.make_model, batch=target.batch)
    model = own.model()
    try:
        guide = own.guide(model)
    except ConfigError as error:
        raise NotApplicableError(f"The guide does not serve the target's model: {error}") from None
    gaps = [_gap(own, target, guide, "at its start")]
    trained = [p for p in guide.parameters() if p.requires_grad]
    if trained:
        _require_slopes(own, target, guide, trained)
        _fit_exactly(own, target, guide, trained)
        gaps.append(_gap(own, target, guide, "at the least exact KL"))
    if kind is not None and not target.local:
        _require_optimum(own, target, guide, kind)
    shown = " and at its least ".join(f"{gap:.3g}" for gap in gaps)
    return f"ELBO = log p(y) − KL to the posterior, and so their gradients; the KL is {shown} nats."


def gaussian_of(case: Case, guide: AdapterGuide, *, gradients: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean, shape (1 or B, D), and covariance, shape (1 or B, D, D), of the guide's posterior; float64.

    Args:
        case: on a linear-Gaussian target.
        guide: built for its model.
        gradients: whether they carry gradients.

    Raises:
        NotApplicableError: it is a point or no Gaussian.
    """
    model: Any = guide.model
    _, found = latents(model, guide, case.batch, gradients=gradients)
    site = the_site(model)
    q = found[JOINT]["fn"] if JOINT in found else found[site.name]["fn"]
    base: Any = base_distribution(q)
    if hasattr(base, "from_noise"):  # a Gaussian over all weights that is told by its root: w = loc + R ε
        with torch.set_grad_enabled(gradients):
            columns = (base.from_noise(torch.eye(len(base.loc)).to(base.loc)) - base.loc).double()
            return base.loc.double()[None], (columns.mT @ columns)[None]
    if not issubclass(type(base), _GAUSSIANS):
        raise NotApplicableError(f"The posterior is a {type(base).__name__}, whose KL to the exact one is not known.")
    rows = case.batch.size if found[site.name]["infer"][SITE].feature is not None else 1
    with torch.set_grad_enabled(gradients):
        mean = q.mean.expand(q.shape()).reshape(rows, -1).double()
        if base.event_shape:
            covariance: Tensor = base.covariance_matrix
            return mean, covariance.double().reshape(rows, mean.shape[1], -1)
        return mean, torch.diag_embed(q.variance.expand(q.shape()).reshape(rows, -1).double())


def _gap(case: Case, target: LinearGaussian, guide: AdapterGuide, when: str) -> float:
    """Return KL(q ‖ posterior), after the identity has been checked."""
    exact = float(target.kl_to_posterior(*gaussian_of(case, guide)))
    elbo = ELBO(guide.model, guide, num_particles=100)  # type: ignore[arg-type]
    with seeded(case.seed + 21), torch.no_grad():
        found = torch.stack([-case.batch.size * elbo(case.batch) for _ in range(6)]).double()
    error = 5.0 * max(float(found.std()), 1e-3) / 6**0.5
    right = target.log_evidence - exact
    if abs(float(found.mean()) - right) > error + 1e-3 * abs(right):
        above = float(found.mean()) > target.log_evidence + error
        raise CheckError(
            f"the ELBO {when} is {float(found.mean()):.4f} nats; evidence and posterior give {right:.4f}"
            + (f", and the evidence itself is {target.log_evidence:.4f}, which no ELBO exceeds." if above else "."),
            f"ELBO = log p(y) − KL(q ‖ posterior), within {error:.2g}.",
            "the KL of the loss, its scale, or the draws are not those of the posterior; the checks density, kl and "
            "scale say which.",
        )
    return exact


def _require_slopes(case: Case, target: LinearGaussian, guide: AdapterGuide, trained: list[Any]) -> None:
    exact = target.kl_to_posterior(*gaussian_of(case, guide, gradients=True))
    if not exact.requires_grad:
        raise CheckError(
            f"the posterior depends on none of the guide's {len(trained)} trained parameters.",
            "what is trained moves q, or training learns nothing about the weights.",
            "posterior() returns the prior, or a distribution of tensors that are detached.",
        )
    right = _flat(torch.autograd.grad(exact, trained, allow_unused=True, materialize_grads=True))
    elbo = ELBO(guide.model, guide, num_particles=50)  # type: ignore[arg-type]
    found = []
    with seeded(case.seed + 23):
        for _ in range(12):
            loss = case.batch.size * elbo(case.batch)
            found.append(_flat(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)))
    each = torch.stack(found)
    allowed = 6.0 * each.std(0) / len(found) ** 0.5 + 2e-3 * float(right.abs().max())
    off = ((each.mean(0) - right).abs() / allowed).max()
    if off > 1.0:
        worst = int(((each.mean(0) - right).abs() / allowed).argmax())
        raise CheckError(
            f"an entry of the loss's average gradient is {float(each.mean(0)[worst]):.4g}; that of the exact KL is "
            f"{float(right[worst]):.4g}.",
            f"they agree to {float(allowed[worst]):.2g}, since loss and KL to the posterior differ by a constant.",
            "draws are not reparametrised, or the gradient of draws or KL is cut off somewhere.",
        )


def _flat(slopes: Sequence[Tensor]) -> Tensor:
    return torch.cat([slope.flatten() for slope in slopes]).double()


def _fit_exactly(case: Case, target: LinearGaussian, guide: AdapterGuide, trained: list[Any]) -> None:
    """Minimise KL(q ‖ posterior) over the guide's parameters; the library's loss takes no part in it."""
    steps = 10 if target.local else 60
    optimiser = torch.optim.LBFGS(trained, max_iter=steps, tolerance_change=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        kl = target.kl_to_posterior(*gaussian_of(case, guide, gradients=True))
        kl.backward()
        return kl

    optimiser.step(closure)


def _require_optimum(case: Case, target: LinearGaussian, guide: AdapterGuide, family: Family) -> None:
    mean, covariance = gaussian_of(case, guide)
    precision = target.precision
    deviation = torch.linalg.inv(precision).diagonal(dim1=-2, dim2=-1).sqrt()
    off = float(((mean - target.mean) / deviation).abs().max())
    best = torch.linalg.inv(precision)
    if family is Family.MEAN_FIELD:
        best = torch.diag_embed(1.0 / precision.diagonal(dim1=-2, dim2=-1))
    ratio = covariance.diagonal(dim1=-2, dim2=-1) / best.diagonal(dim1=-2, dim2=-1)
    wrong = float((ratio.log()).abs().max())
    spare = float(target.kl_to_posterior(mean, covariance) - target.kl_to_posterior(target.mean, best))
    if off > 0.05 or wrong > 0.05 or abs(spare) > 0.02:
        what = "1/Λ_ii" if family is Family.MEAN_FIELD else "(Λ⁻¹)_ii"
        raise CheckError(
            f"the best q has a mean {off:.2f} deviations off and variances {float(ratio.min()):.3g} to "
            f"{float(ratio.max()):.3g} times {what}, {spare:.3g} nats from the optimum of {family.value!r}.",
            f"the exact mean and the variances {what}.",
            "the guide does not hold that family (tied or missing parameters, a bounded scale); pass another family, "
            "or None.",
        )
