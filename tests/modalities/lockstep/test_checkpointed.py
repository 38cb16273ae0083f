"""Gradient checkpointing in lock-step: a layer that runs again finds its replacement and its random numbers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities import _lockstep_checks
from bayes_adapters.modalities.lockstep import Pauses, Tap, run
from tests.internals import hooks_of
from tests.modalities.lockstep.parts import X
from tests.refusals import refuses


class Block(nn.Module):
    """Noise, a stop, noise again; all of it checkpointed, if asked for, and run again within what the test says."""

    gradient_checkpointing = False
    again: Callable[[], Any]

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def _forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.one(x).tanh(), 0.5)
        return F.dropout(self.two(x).tanh(), 0.5) * x

    def forward(self, x: Tensor) -> Tensor:
        if not (self.gradient_checkpointing and self.training):
            return self._forward(x)
        first, again = True, self.again

        def once(x: Tensor) -> Tensor:
            nonlocal first
            if first:
                first = False
                return self._forward(x)
            with again():
                return self._forward(x)

        return checkpoint(once, x, use_reentrant=False)


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(seed), Block(seed + 1)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


NAMES = ("a", "b")
TAPS = [Tap(2 * i + side, f"blocks.{i}.two", ("input", "output")[side]) for i in range(2) for side in range(2)]


def nets() -> dict[str, nn.Module]:
    return {"a": Net(1), "b": Net(3)}


def swapped(step: int, x: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """One keeps what it has at inputs; at outputs both are replaced."""
    return {"a": x["a"] * x["b"], "b": x["a"] + x["b"]} if step % 2 else {"a": 0.5 * x["a"] + x["b"]}


def trained(checkpointed: str, outer: Any = None) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
    """Loss and gradients of two runs before one backward."""
    modules = nets()
    x = torch.cat([X, 2 * X]).repeat(8, 1).requires_grad_()
    torch.manual_seed(5)
    loss = torch.zeros(())
    for _ in range(2):
        pauses = Pauses()
        for name in checkpointed:
            for block in modules[name].get_submodule("blocks").children():
                block.gradient_checkpointing, block.again = True, pauses.replayed  # type: ignore[assignment]
        calls = {"a": {"x": x}, "b": {"x": -x}}
        out = run(modules, calls, dict.fromkeys(NAMES, TAPS), swapped, pauses=pauses)
        loss = loss + out["a"].square().sum() + out["b"].sum()
    torch.manual_seed(99)
    loss.backward()
    grads = {f"{n}.{path}": p.grad for n, m in modules.items() for path, p in m.named_parameters()}
    assert x.grad is not None
    return {"loss": loss.detach(), "x": x.grad, "next": torch.rand(1), **grads}, modules  # type: ignore[dict-item]


@pytest.mark.parametrize("checkpointed", ["a", "b", "ab"])
def test_gradients_are_those_without(checkpointed: str) -> None:
    expected, _ = trained("")
    found, modules = trained(checkpointed)
    assert float(expected["a.blocks.0.one.weight"].abs().max()) > 0.0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)
    assert hooks_of(*modules.values()) == 0


def test_hooks_of_saved_tensors_stay_with_their_module() -> None:
    """A caller's own are on everywhere; a paused layer's are off in the exchange and in the other module."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    counts = []
    for checkpointed in ("", "a"):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            expected, _ = trained(checkpointed)
        counts.append(len(kept))
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert 0 < counts[1] < counts[0]
    torch.testing.assert_close(expected["loss"], trained("")[0]["loss"])


def test_a_run_without_backward_is_freed() -> None:
    (_, modules), pauses = trained("ab"), Pauses()
    blocks = [block for module in modules.values() for block in module.get_submodule("blocks").children()]
    for block in blocks:
        block.again = pauses.replayed  # type: ignore[assignment]
    x = torch.ones(1, 3, requires_grad=True)
    run(modules, {"a": {"x": x}, "b": {"x": x}}, dict.fromkeys(NAMES, TAPS), swapped, pauses=pauses)
    held = weakref.ref(pauses)
    for block in blocks:
        del block.again
    del pauses
    gc.collect()
    assert held() is None


def test_an_error_in_a_paused_layer_leaves_no_hooks() -> None:
    modules = nets()
    for block in modules["a"].get_submodule("blocks").children():
        block.gradient_checkpointing, block.again = True, Pauses().replayed  # type: ignore[assignment]

    def broken(step: int, x: dict[str, Tensor]) -> Mapping[str, Tensor]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(modules, {"a": {"x": X}, "b": {"x": X}}, dict.fromkeys(NAMES, TAPS), broken, pauses=Pauses())
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert hooks_of(*modules.values()) == 0


def test_what_cannot_run_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = nets()
    block: Any = modules["a"].get_submodule("blocks.1")
    block.gradient_checkpointing, block.again = True, Pauses().replayed
    calls, taps = {"a": {"x": X}, "b": {"x": X}}, dict.fromkeys(NAMES, TAPS)
    with refuses(ConfigError, "'a'", "'blocks.1.two'", "pauses=Pauses()"):
        run(modules, calls, taps, swapped)
    with refuses(ConfigError, "'a'", "two names"):
        run({"a": modules["a"], "b": modules["a"]}, calls, taps, swapped, pauses=Pauses())
    run({"a": modules["a"].eval(), "b": modules["a"]}, calls, taps, swapped)
    modules["a"].train()
    monkeypatch.setattr(_lockstep_checks, "READS_HOOKS", False)
    with refuses(ConfigError, "'a'", "torch 2.8", torch.__version__):
        run(modules, calls, taps, swapped, pauses=Pauses())
