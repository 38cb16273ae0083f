"""A run inside a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bayes_adapters.modalities.lockstep import Tap, run
from tests.internals import hooks_of
from tests.modalities.lockstep.parts import Chain, X
from tests.refusals import refuses


class Fused(nn.Module):
    """Two chains in lock-step, as one module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.a, self.b = Chain(seed=seed), Chain(seed=seed + 1)
        self.cleaned = False

    def forward(self, x: Tensor) -> Tensor:
        try:
            out = run(
                {"a": self.a, "b": self.b},
                {"a": {"x": x}, "b": {"x": -x}},
                {"a": [Tap(0, "one", "output"), Tap(1, "three", "input")], "b": [Tap(0, "two", "output")]},
                lambda step, h: {"a": h["a"] + h["b"]} if step == 0 else {},
            )
            return out["a"] * out["b"]
        finally:
            self.cleaned = True

    def by_hand(self, x: Tensor, two: Callable[[Tensor], Tensor]) -> Tensor:
        b2 = self.b.two(self.b.one(-x).tanh())
        a2 = self.a.two((self.a.one(x) + b2).tanh())
        return self.a.three(two(a2).tanh()) * self.b.three(b2.tanh())


OUTER = {"p": [Tap(0, "a.two", "output")], "q": [Tap(0, "a.two", "output")]}


def test_nested_runs() -> None:
    """An outer tap may lie inside a module that an inner run drives."""
    p, q = Fused(1), Fused(5)
    seen: dict[str, Tensor] = {}

    def exchange(step: int, h: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.update(h)
        return {"p": h["p"] + h["q"], "q": h["q"] * 2}

    out = run({"p": p, "q": q}, {"p": {"x": X}, "q": {"x": X + 1}}, OUTER, exchange)
    assert torch.equal(out["p"], p.by_hand(X, lambda a2: a2 + seen["q"]))
    assert torch.equal(out["q"], q.by_hand(X + 1, lambda a2: a2 * 2))
    assert hooks_of(p, q) == 0


def test_nested_runs_are_unwound_on_error() -> None:
    p, q = Fused(1), Fused(5)

    def exchange(step: int, h: dict[str, Tensor]) -> dict[str, Tensor]:
        raise ZeroDivisionError("no exchange")

    with refuses(ZeroDivisionError, "no exchange"):
        run({"p": p, "q": q}, {"p": {"x": X}, "q": {"x": X}}, OUTER, exchange)
    assert p.cleaned
    assert q.cleaned
    assert hooks_of(p, q) == 0
    assert torch.equal(p(X), p.by_hand(X, lambda a2: a2))
