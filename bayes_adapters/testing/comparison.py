"""How near a posterior is to the stored reference of its target, in units of the reference's standard deviations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import ConfigError, described, whole_number
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.testing.case import latents
from bayes_adapters.testing.entries import joined, labels, log_density
from bayes_adapters.testing.importance import importance
from bayes_adapters.testing.report import NotApplicableError
from bayes_adapters.testing.stored import Reference

_AT_ONCE = 1000


@dataclass(frozen=True)
class Closeness:
    """A posterior beside its reference; vectors have the order of ``entries``, float64.

    Args:
        entries: a name for every number.
        mean_error: ``(mean of q − mean) / sd``, shape (D,).
        sd_ratio: ``sd of q / sd``, shape (D,): below 1 q is too narrow.
        wasserstein: the mean absolute difference of the quantiles of q and of the reference, between 2.5 % and 97.5 %,
            in sd, shape (D,): the Wasserstein distance of the marginals without their tails.
        energy: the energy distance of all numbers together, from draws whitened by the reference's covariance. Its
            expectation is 0 for the posterior itself; an estimate may lie below 0.
        khat: k̂ of the importance weights, see :func:`bayes_adapters.testing.importance`; None where there are none.
        kl: log p(y) − ELBO = KL(q ‖ posterior), nats; None where there are no weights.
    """

    entries: tuple[str, ...]
    mean_error: Float[Tensor, " D"]
    sd_ratio: Float[Tensor, " D"]
    wasserstein: Float[Tensor, " D"]
    energy: float
    khat: float | None
    kl: float | None

    def __str__(self) -> str:
        ratio = f"{float(self.sd_ratio.min()):.2f} to {float(self.sd_ratio.max()):.2f}"
        parts = [
            f"mean off by at most {float(self.mean_error.abs().max()):.2f} sd",
            f"sd {ratio} times the reference's",
            f"marginals {float(self.wasserstein.max()):.2f} sd apart at most",
            f"energy distance {self.energy:.3f}",
        ]
        if self.khat is not None and self.kl is not None:
            parts += [f"k-hat {self.khat:.2f}", f"KL {self.kl:.2f} nats"]
        return ", ".join(parts)


@exclusive()
def closeness(
    model: AdapterModel, guide: AdapterGuide, reference: Reference, *, num_samples: int = 1000, seed: int = 0
) -> Closeness:
    """Return how far the guide is from a reference posterior.

    Errors from draws: 1/√S of a mean, 1/√(2S) of an sd ratio, beside the reference's own, ``reference.error``.

    Args:
        model: made by ``reference.make_model()``; nothing of it but the random weights may have been trained.
        guide: fitted on ``reference.make_batch()``, all of it at ``kl_weight=1.0``: any guide or sampler's draws.
        reference: from :func:`bayes_adapters.testing.reference`.
        num_samples: S draws of the guide.
        seed: of the draws.

    Raises:
        ConfigError: another model's guide, or a model whose joint density is not that of the reference.
        MissingResourceError: arviz is not installed and the guide has importance weights.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import reference
    >>> exact = reference("linear-core")
    >>> model = exact.make_model()
    >>> found = closeness(model, guides.MeanField(model, init_scale=0.01), exact, num_samples=100)
    >>> bool(found.sd_ratio.max() < 0.1), found.khat > 0.7
    (True, True)
    """
    require_pair(model, guide)
    whole_number("num_samples", num_samples, 25)
    _require_reference(reference)
    _require_target(model, reference)
    batch = reference.make_batch()
    drawn = []
    for part, start in enumerate(range(0, num_samples, _AT_ONCE)):
        count = min(_AT_ONCE, num_samples - start)
        _, nodes = latents(model, guide, batch, count, seed * 1009 + part)
        drawn.append(joined(model, {name: _each(node, count) for name, node in nodes.items()}))
    draws = torch.cat(drawn)
    marginal = draws.quantile(reference.levels, 0) - reference.quantiles
    khat: float | None = None
    kl: float | None = None
    try:
        weights = importance(model, guide, batch, num_samples=num_samples, seed=seed)
        khat, kl = float(weights.khat), reference.log_evidence - float(weights.log_weights.mean())
    except NotApplicableError:
        pass  # None says so
    return Closeness(
        reference.entries,
        (draws.mean(0) - reference.mean) / reference.sd,
        draws.std(0) / reference.sd,
        marginal.abs().mean(0) / reference.sd,
        energy_distance(draws, reference.draws, reference.covariance),
        khat,
        kl,
    )


def energy_distance(a: Float[Tensor, "S D"], b: Float[Tensor, "K D"], covariance: Float[Tensor, "D D"]) -> float:
    """Return ``2 E|a − b| − E|a − a'| − E|b − b'|`` of draws that ``L⁻¹`` has whitened, ``L Lᵀ = covariance``.

    Pairs of a draw with itself are left out, so that the expectation of the estimate is the distance itself.

    Source: Székely and Rizzo 2013, Energy statistics.

    >>> a = torch.tensor([[0.0], [2.0]]).double()
    >>> energy_distance(a, a + 3.0, torch.eye(1).double())  # 2 · 3 − 2 − 2
    2.0
    """
    tril = torch.linalg.cholesky(covariance)
    x, y = (torch.linalg.solve_triangular(tril, v.T.to(tril), upper=False).T for v in (a, b))

    def within(v: Tensor) -> float:
        return summed(v, v) / (len(v) * (len(v) - 1))

    def summed(v: Tensor, w: Tensor) -> float:
        return sum(float(torch.cdist(part, w).sum()) for part in v.split(_AT_ONCE))

    return 2 * summed(x, y) / (len(x) * len(y)) - within(x) - within(y)


def _each(node: Any, count: int) -> Tensor:
    value: Tensor = node["value"]
    return value.expand(count, *value.shape[1:])


def _require_reference(reference: object) -> None:
    if not isinstance(reference, Reference):
        raise ConfigError(
            "closeness() takes (model, guide, reference), the last of them a stored posterior such as "
            f"bayes_adapters.testing.reference('linear-core'); got {described(reference)}."
        )


def _require_target(model: AdapterModel, reference: Reference) -> None:
    batch, names, found = reference.make_batch(), tuple(labels(model)), list[float]()
    if names == reference.entries:
        found = [log_density(model, batch, u) for u in reference.draws[: len(reference.log_density)]]
    right = reference.log_density.tolist()
    if not found or any(abs(a - b) > 1e-2 for a, b in zip(found, right, strict=True)):
        raise ConfigError(
            f"The model is not that of the reference {reference.name!r}: log p(y, u) is {found or f'of {names}'} "
            f"at its first draws, and should be {right} nats. Make it by reference.make_model(), and train nothing but "
            "the guide: fit(model, guide, reference.make_batch(), kl_weight=1.0)."
        )
