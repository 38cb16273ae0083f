"""The gradient of the loss against differences of the loss, under the same random numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.testing.case import Case, seeded
from bayes_adapters.testing.report import CheckError, NotApplicableError

_STEP = 0.004
_RELATIVE, _ULP = 0.03, 2.0**-23
"""The allowed difference, beside what the two steps and float32 leave open: see :func:`_difference`."""


def check_gradient(case: Case) -> str:
    """Check each parameter's gradient along a random direction against central differences of the loss.

    Under common random numbers the loss is a smooth function of the parameters, and its pathwise gradient is that
    function's. For a direction v of unit length in one tensor ``D(h) = (L(θ + h v) − L(θ − h v)) / 2h`` tends to
    ⟨∇L, v⟩. Steps are small (0.004 and 0.002), since networks with ReLU bend at every corner.

    Raises:
        CheckError: a slope is another one, a parameter has none, or the loss depends on a tensor that is to be trained
            and is no parameter.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> print(check_gradient(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))[:23])
    Slopes of 2 parameters
    """
    model, guide = case.build()
    own = {name: p for name, p in guide.named_parameters() if p.requires_grad}
    if not own:
        raise NotApplicableError(f"{type(guide).__name__} has no parameters to train.")
    elbo = ELBO(model, guide)

    def loss() -> Tensor:
        with seeded(case.seed + 11):
            return elbo(case.batch)

    value = loss()
    known = {id(p) for p in [*model.parameters(), *guide.parameters()]}
    strays = [leaf for leaf in _leaves(value) if id(leaf) not in known]
    if strays:
        raise CheckError(
            f"the loss depends on a tensor of shape {tuple(strays[0].shape)} that is trained and is no parameter.",
            "an optimiser, and save(), find everything that is trained among guide.parameters().",
            "a tensor with requires_grad=True is kept as a plain attribute; wrap it in nn.Parameter.",
        )
    slopes = torch.autograd.grad(value, list(own.values()), allow_unused=True)
    worst = 0.0
    for (name, p), slope in zip(own.items(), slopes, strict=True):
        with seeded(case.seed + 13):
            direction = torch.randn_like(p)
        direction /= direction.norm()
        found = 0.0 if slope is None else float((slope * direction).sum())
        right, noise = _difference(loss, p, direction)
        allowed = _RELATIVE * max(abs(right), abs(found)) + noise + 4 * _ULP * max(1.0, abs(value.item())) / _STEP
        worst = max(worst, abs(found - right) / allowed)
        if abs(found - right) > allowed:
            raise CheckError(
                f"the slope of the loss along a direction of {name!r} is {found:.5g}; differences of the loss give "
                f"{right:.5g}.",
                f"they agree to {allowed:.2g}.",
                f"{name!r} has no gradient: it is detached, used under torch.no_grad(), or drawn with sample() instead "
                "of rsample()."
                if slope is None or found == 0.0
                else "a draw or a KL is detached in parts, a custom backward() or register_kl is wrong, or rsample() "
                "is not the derivative of sample().",
            )
    return (
        f"Slopes of {len(own)} parameters agree with differences; the worst uses {100 * worst:.0f} % of the tolerance."
    )


@torch.no_grad()
def _difference(loss: object, p: nn.Parameter, direction: Tensor) -> tuple[float, float]:
    """D(h/2), and what it may be off by: four times its distance from D(h)."""
    start = p.detach().clone()

    def central(step: float) -> float:
        values = []
        for sign in (1.0, -1.0):
            p.copy_(start + sign * step * direction)
            values.append(loss().double())  # type: ignore[operator]
        p.copy_(start)
        return float(values[0] - values[1]) / (2.0 * step)

    wide, narrow = central(_STEP), central(_STEP / 2)
    return narrow, 4.0 * abs(narrow - wide)


def _leaves(value: Tensor) -> list[Tensor]:
    """The tensors that a backward pass would give a gradient."""
    found: dict[int, Tensor] = {}
    seen: set[object] = set()
    queue = [value.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        queue += [after for after, _ in node.next_functions]
    return list(found.values())
