"""Sample statements inside modules in lock-step: traces, plates, replay and SVI as by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine import runtime
from torch import Tensor, nn

from bayes_adapters.modalities.lockstep import Tap, run
from tests.modalities.lockstep.parts import X


class Noisy(nn.Module):
    """Adds a latent per row in front of its layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.part = name, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = pyro.sample(f"{self.name}.z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        h = self.part(x + z)
        return h + pyro.sample(f"{self.name}.e", dist.Normal(torch.zeros(3), 0.1).to_event(1))


def noisy_model(modules: Mapping[str, nn.Module], lockstep: bool = True) -> Callable[[Tensor], Tensor]:
    taps = {name: [Tap(0, "part", "input")] for name in modules}

    def model(y: Tensor) -> Tensor:
        with pyro.plate("data", len(y), dim=-1), poutine.scale(scale=0.5):
            calls = {name: {"x": X.expand(len(y), 3)} for name in modules}
            if lockstep:
                out = run(modules, calls, taps, lambda step, x: {"a": x["a"] + x["b"], "b": x["b"]})
                total = out["a"] + out["b"]
            else:  # the same by hand
                a: Any
                b: Any
                a, b = modules["a"], modules["b"]
                za = pyro.sample("a.z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                zb = pyro.sample("b.z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                xa, xb = calls["a"]["x"] + za, calls["b"]["x"] + zb
                ea = pyro.sample("a.e", dist.Normal(torch.zeros(3), 0.1).to_event(1))
                eb = pyro.sample("b.e", dist.Normal(torch.zeros(3), 0.1).to_event(1))
                total = a.part(xa + xb) + ea + b.part(xb) + eb
            pyro.sample("y", dist.Normal(total, 1.0).to_event(1), obs=y)
        return total

    return model


def test_pyro_sample_inside_traces_and_plates() -> None:
    modules = {"a": Noisy("a"), "b": Noisy("b")}
    y = torch.randn(5, 3)
    trace = poutine.trace(noisy_model(modules)).get_trace(y)
    assert {n for n, s in trace.nodes.items() if s["type"] == "sample"} >= {"a.z", "a.e", "b.z", "b.e", "y"}
    for name in ("a.z", "a.e", "b.z", "b.e"):
        site = trace.nodes[name]
        assert site["value"].shape == (5, 3)
        assert [f.name for f in site["cond_indep_stack"]] == ["data"]
        assert site["scale"] == 0.5
    by_hand = poutine.trace(poutine.replay(noisy_model(modules, lockstep=False), trace=trace)).get_trace(y)
    torch.testing.assert_close(trace.log_prob_sum(), by_hand.log_prob_sum())
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], by_hand.nodes["_RETURN"]["value"])
    replayed = poutine.trace(poutine.replay(noisy_model(modules), trace=trace)).get_trace(y)
    assert torch.equal(replayed.log_prob_sum(), trace.log_prob_sum())
    fixed = poutine.trace(poutine.condition(noisy_model(modules), {"a.z": torch.zeros(5, 3)})).get_trace(y)
    assert fixed.nodes["a.z"]["is_observed"]
    assert runtime._PYRO_STACK == []


def test_svi_trains_as_by_hand() -> None:
    """Stock SVI over the lock-step model: losses equal the hand-written model's, step for step."""
    losses: dict[bool, list[float]] = {}
    for lockstep in (True, False):
        pyro.clear_param_store()
        torch.manual_seed(3)
        modules = {"a": Noisy("a"), "b": Noisy("b")}
        inner = noisy_model(modules, lockstep)

        def model(y: Tensor, modules: Any = modules, inner: Any = inner) -> None:
            for name, module in modules.items():
                pyro.module(name, module)
            inner(y)

        def guide(y: Tensor) -> None:
            with pyro.plate("data", len(y), dim=-1), poutine.scale(scale=0.5):
                for name in ("a.z", "b.z", "a.e", "b.e"):
                    loc = pyro.param(name + ".loc", torch.zeros(3))
                    pyro.sample(name, dist.Normal(loc, 0.1).to_event(1))

        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        torch.manual_seed(4)
        y = torch.randn(6, 3) + 4
        losses[lockstep] = [svi.step(y) for _ in range(30)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[True][-1] < 0.7 * losses[True][0]
