"""The KL of each posterior to its prior against the integral of its definition.

Where entries are independent, ``KL = ∫ q (log q − log p)`` is a quadrature per entry, or a sum where they are discrete.
Where they depend on each other, draws stand in the integral's place: ``KL = E[log q − log p]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_adapters.distributions import LogUniform, base_distribution
from bayes_adapters.inference.divergence import SAME
from bayes_adapters.inference.joint import JOINT, joint_kl
from bayes_adapters.testing._quadrature import DRAWS, axis, log_density
from bayes_adapters.testing.case import Case, latents, seeded
from bayes_adapters.testing.report import CheckError, NotApplicableError


def check_kl(case: Case) -> str:
    """Check torch's ``kl_divergence`` of each posterior to its prior against the integral of its definition.

    Raises:
        CheckError: they differ.
        NotApplicableError: no site has a KL in closed form; the loss then takes log q − log p at draws, which
            :func:`check_density` covers.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> check_kl(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))[:34]
    '1 closed forms equal the integral;'
    """
    model, guide = case.build()
    nodes, single = latents(model, guide, case.batch)
    seen, worst = 0, 0.0
    for name, node in single.items():
        base = base_distribution(node["fn"])
        if node["infer"].get(SAME) or type(base).__name__ == "Delta":
            continue
        if name == JOINT:
            kls = _joint(guide, nodes, single, node)
            if kls is None:
                continue
            found, right, error = kls
        else:
            theirs = base_distribution(nodes[name]["fn"])
            if isinstance(theirs, LogUniform) or base.event_shape:
                continue  # known up to a constant, or no density per entry
            try:
                found = float(kl_divergence(base, theirs).detach().expand(base.batch_shape).sum())
            except NotImplementedError:
                continue
            right = float(_integral(base, theirs).sum())
            error = 2e-3 * abs(right) + 1e-3
        seen += 1
        worst = max(worst, abs(found - right) / error)
        if not abs(found - right) <= error:
            raise CheckError(
                f"kl_divergence(posterior, prior) of {name!r} is {found:.6g}; the integral of q (log q − log p) is "
                f"{right:.6g}, {found / right if right else float('nan'):.4g} times as small.",
                f"they agree to {error:.2g}.",
                f"the function registered by register_kl for {type(base).__name__} is wrong (a factor, a sign, a "
                "missing term), or a base class's is found for a subclass whose log_prob differs.",
            )
    if not seen:
        raise NotApplicableError("No posterior has a KL in closed form that differs from 0.")
    return f"{seen} closed forms equal the integral; {100 * worst:.0f} % of the tolerance is used."


@torch.no_grad()
def _integral(q: Any, p: Any) -> Tensor:
    if q.has_enumerate_support:  # a sum over what may be drawn
        each = q.enumerate_support().double()
        return (q.log_prob(each).exp() * (q.log_prob(each) - p.log_prob(each))).sum(0)
    with seeded(3):
        draws = q.sample((DRAWS,))
    grid = axis(draws.double())
    values = grid.to(draws.dtype)
    ours, theirs = log_density(q, values).double(), log_density(p, values).double()
    inside = torch.where(ours > -60, ours.exp() * (ours - theirs), 0.0)
    return inside.sum(0) * (grid[1] - grid[0])


@torch.no_grad()
def _joint(guide: Any, nodes: Any, single: Any, joint: Any) -> tuple[float, float, float] | None:
    """KL of the loss, by draws, and what they may differ by; None where the loss takes log q − log p at a draw."""
    parts = {name: nodes[name] for name in guide.layout if name in single}
    q = joint["fn"]
    with seeded(5):
        w = q.sample((DRAWS,)).reshape(DRAWS, -1)
    ratio = q.log_prob(w.reshape(-1, *q.event_shape)).flatten()
    for name, place in guide.layout.items():
        prior = nodes[name]["fn"]
        values = w[:, place].reshape(DRAWS, *prior.batch_shape[1:], *prior.event_shape)
        ratio = ratio - prior.log_prob(values).flatten()
    found = float(joint_kl(joint, parts).sum())
    drawn = float((q.log_prob(joint["value"]) - sum(n["fn"].log_prob(n["value"]) for n in parts.values())).sum())
    if abs(found - drawn) < 1e-4 * abs(drawn):
        return None
    return found, float(ratio.mean()), 5.0 * float(ratio.std()) / DRAWS**0.5 + 1e-3
