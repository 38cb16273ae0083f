"""The gradient of the loss against differences of the loss, under the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.testing.case import Case, seeded
from bayes_adapters.testing.report import CheckError, NotApplicableError

_STEP = 0.004
_RELATIVE, _ULP = 0.03, 2.0**-23
"""The allowed difference, beside what the two steps and float32 leave open: see :func:`_slopes`."""
_TOGETHER = 3
"""Parameters that move together; where they disagree, each is looked at."""


def check_gradient(case: Case) -> str:
    """Check the parameters' gradients along random directions against central differences of the loss.

    Under common random numbers the loss is a smooth function of the parameters, and its pathwise gradient is that
    function's. For a direction v of unit length in each tensor ``D(h) = (L(θ + h v) − L(θ − h v)) / 2h`` tends to
    ⟨∇L, v⟩. Steps are small (0.004 and 0.002), since networks with ReLU bend at every corner.

    Raises:
        CheckError: a slope is another one, a parameter has none, or the loss depends on a tensor that is to be trained
            and is no parameter.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.testing import standard_batch, standard_models
    >>> print(check_gradient(Case(guides.MeanField, standard_models()["core, global"], standard_batch()))[:22])
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
    slopes = dict(zip(own, torch.autograd.grad(value, list(own.values()), allow_unused=True), strict=True))

    def compare(names: list[str]) -> tuple[float, float, float]:
        found, right, noise = _slopes(loss, {n: own[n] for n in names}, slopes, case.seed + 13)
        floor = noise + 4 * _ULP * max(1.0, abs(value.item())) / _STEP
        return found, right, _RELATIVE * max(abs(right), abs(found)) + floor

    worst = 0.0
    for group in _groups(slopes):
        found, right, allowed = compare(group)
        worst = max(worst, abs(found - right) / allowed)
        if abs(found - right) <= allowed:
            continue
        for name in group:  # which of them is it?
            found, right, allowed = compare([name])
            if abs(found - right) > allowed:
                group = [name]
                break
        none = all(slopes[name] is None for name in group) or found == 0.0
        raise CheckError(
            f"the slope of the loss along a direction of {', '.join(map(repr, group))} is {found:.5g}; differences of "
            f"the loss give {right:.5g}.",
            f"they agree to {allowed:.2g}.",
            "it has no gradient: it is detached, used under torch.no_grad(), or drawn with sample(), not rsample()."
            if none
            else "a draw or a KL is detached in parts, a custom backward() or register_kl is wrong, or rsample() is no "
            "function of its parameters.",
        )
    return f"Slopes of {len(own)} parameters agree with differences; {100 * worst:.0f} % of the tolerance is used."


def _groups(slopes: Mapping[str, Tensor | None]) -> list[list[str]]:
    """Names that share a direction: three at a time, and alone those without a gradient."""
    found = [[name] for name, slope in slopes.items() if slope is None]
    rest = [name for name, slope in slopes.items() if slope is not None]
    return found + [rest[i : i + _TOGETHER] for i in range(0, len(rest), _TOGETHER)]


@torch.no_grad()
def _slopes(
    loss: Callable[[], Tensor], own: Mapping[str, nn.Parameter], slopes: Mapping[str, Tensor | None], seed: int
) -> tuple[float, float, float]:
    """Return ⟨∇L, v⟩, D(h/2), and what that may be off by: four times its distance from D(h)."""
    start = {name: p.detach().clone() for name, p in own.items()}
    with seeded(seed):
        drawn = {name: torch.randn_like(p) for name, p in own.items()}
    directions = {name: v / v.norm() for name, v in drawn.items()}

    def central(step: float) -> float:
        values = []
        for sign in (1.0, -1.0):
            for name, p in own.items():
                p.copy_(start[name] + sign * step * directions[name])
            values.append(loss().double())
        for name, p in own.items():
            p.copy_(start[name])
        return float(values[0] - values[1]) / (2.0 * step)

    found = 0.0
    for name, v in directions.items():
        slope = slopes[name]
        found += 0.0 if slope is None else float((slope * v).sum())
    wide, narrow = central(_STEP), central(_STEP / 2)
    return found, narrow, 4.0 * abs(narrow - wide)


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
