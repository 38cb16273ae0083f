"""Autograd, modes and contexts: the caller's hold inside, and a module's own stay its own."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine import runtime
from torch import Tensor, nn

from bayes_adapters.modalities.lockstep import Tap, run
from tests.internals import hooks_of
from tests.modalities.lockstep.parts import BOTH, PAIR, Chain, Inside, X, encoders, pair
from tests.refusals import refuses


def test_gradients_flow_through_the_exchange() -> None:
    modules = pair()
    out = run(modules, BOTH, PAIR, lambda step, x: {"a": x["a"] * x["b"], "b": x["b"]})
    out["a"].sum().backward()
    a: Any
    b: Any
    a, b = modules["a"], modules["b"]
    got = {n: p.grad for n, p in a.named_parameters()} | {"b." + n: p.grad for n, p in b.named_parameters()}
    for module in modules.values():
        module.zero_grad()
    a.three(a.two(a.one(X).tanh() * b.one(-X).tanh()).tanh()).sum().backward()
    assert b.one.weight.grad is not None
    assert bool((b.one.weight.grad != 0).any())
    for n, p in [*a.named_parameters(), *(("b." + n, p) for n, p in b.named_parameters())]:
        assert (p.grad is None) == (got[n] is None)
        assert p.grad is None or torch.equal(p.grad, got[n])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_modes_hold_inside(mode: Callable[[], Any]) -> None:
    modules, calls, taps = encoders()
    grad: list[bool] = []
    with mode():
        plain = {name: module(**calls[name])[0] for name, module in modules.items()}
        for _ in range(2):
            out = run(modules, calls, taps, lambda step, x: (grad.append(torch.is_grad_enabled()), {})[1])
            for name, expected in plain.items():
                assert out[name][0].dtype == expected.dtype
                assert out[name][0].requires_grad == expected.requires_grad
                assert torch.equal(out[name][0], expected)
        assert set(grad) == {torch.is_grad_enabled()}
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


OWN_MODES = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "plate": lambda: pyro.plate("rows", 4),
    "handler": lambda: poutine.scale(scale=7.0),
}


def thread_state() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        list(runtime._PYRO_STACK),
        list(runtime._DIM_ALLOCATOR._stack),
    )


@pytest.mark.parametrize("kind", list(OWN_MODES))
@pytest.mark.parametrize("fails", [False, True])
def test_a_modules_own_modes_stay_its_own(kind: str, fails: bool) -> None:
    """While one module stands still inside a context, neither the other module nor exchange is inside it."""
    states: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: states.update({name: thread_state()})

    modules: dict[str, Any] = {"a": Inside(OWN_MODES[kind]), "b": Chain(), "c": Inside(OWN_MODES[kind])}
    modules["a"].part.register_forward_hook(note("a"))
    modules["a"].last.register_forward_hook(note("a after"))
    modules["b"].two.register_forward_hook(note("b"))
    modules["c"].part.register_forward_hook(note("c"))
    alone = modules["a"](X)
    own = states["a"]
    calls = {"a": {"x": X}, "b": {"x": X}, "c": {"x": X}}
    taps = {
        "a": [Tap(0, "part", "input"), Tap(1, "part", "output")],
        "b": [Tap(0, "two", "input")],
        "c": [Tap(0, "part", "input"), Tap(1, "part", "output")],
    }
    outside = thread_state()

    def exchange(step: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert thread_state() == outside
        if fails and step:
            raise KeyError("stop")
        return {}

    if fails:
        with refuses(KeyError, "stop"):
            run(modules, calls, taps, exchange)
        assert modules["a"].left
        assert modules["c"].left
    else:
        out = run(modules, calls, taps, exchange)
        assert torch.equal(out["a"], alone)
        assert out["a"].requires_grad
        assert states["a after"] == outside
        assert [type(h) for h in states["a"][3]] == [type(h) for h in own[3]]
        assert states["a"][:3] == states["c"][:3] == own[:3]
        assert states["a"][4] == states["c"][4] == own[4], "both have their plate at the same dimension"
        assert states["b"] == outside
    assert thread_state() == outside
    assert hooks_of(modules["a"], modules["b"], modules["c"]) == 4


def test_context_variables() -> None:
    """A module sees the caller's context; what it sets itself is seen by nobody else."""
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen: list[tuple[str, str]] = []

    class Sets(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.part = name, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.name, variable.get()))
            variable.set(self.name)
            x = self.part(x)
            seen.append((self.name, variable.get()))
            return x

    def exchange(step: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(("exchange", variable.get()))
        return {}

    variable.set("caller")
    run(
        {n: Sets(n) for n in "ab"},
        {n: {"x": X} for n in "ab"},
        {n: [Tap(0, "part", "input")] for n in "ab"},
        exchange,
    )
    assert seen == [("a", "caller"), ("b", "caller"), ("exchange", "caller"), ("a", "a"), ("b", "b")]
    assert variable.get() == "caller"
