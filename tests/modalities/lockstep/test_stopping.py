"""An exception anywhere ends all modules, is passed on as it is, and nothing is kept alive."""

from __future__ import annotations

import gc
import traceback
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters.modalities.lockstep import Tap, run
from tests.internals import hooks_of
from tests.modalities.lockstep.parts import BOTH, PAIR, Chain, Inside, X, pair, unchanged
from tests.refusals import refuses


def failing(module: nn.Module, error: BaseException) -> nn.Module:
    def fail(*_: Any) -> None:
        raise error

    module.get_submodule("three").register_forward_pre_hook(fail)
    return module


@pytest.mark.parametrize("error", [ValueError("broken layer"), KeyboardInterrupt()], ids=["value", "interrupt"])
def test_an_exception_in_one_module_ends_the_others(error: BaseException) -> None:
    other = Inside(torch.no_grad)
    modules = {"a": other, "b": failing(Chain(), error), "c": Chain()}
    taps = {"a": [Tap(0, "part", "input"), Tap(9, "part", "output")], "b": [Tap(0, "two", "input")]}
    with pytest.raises(type(error)) as caught:
        run(modules, {"a": {"x": X}, "b": {"x": X}, "c": {"x": X}}, taps, unchanged)
    assert caught.value is error
    assert "fail" in [frame.name for frame in traceback.extract_tb(error.__traceback__)], "the traceback was lost"
    assert any("'b'" in note for note in error.__notes__)
    assert other.left, "the paused module was not unwound"
    assert hooks_of(*modules.values()) == 1
    assert torch.is_grad_enabled()
    other(X)


def test_an_exception_in_exchange_ends_all() -> None:
    modules = {"a": Inside(torch.no_grad), "b": Inside(torch.no_grad)}
    error = RuntimeError("exchange failed")

    def exchange(step: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        raise error

    taps = {n: [Tap(0, "part", "input")] for n in modules}
    with pytest.raises(RuntimeError) as caught:
        run(modules, BOTH, taps, exchange)
    assert caught.value is error
    assert "exchange" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert modules["a"].left
    assert modules["b"].left
    assert hooks_of(*modules.values()) == 0


def test_a_second_error_while_stopping_is_noted() -> None:
    class Untidy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.part(x)
            finally:
                raise OSError("disk full")

    modules = {"a": Untidy(), "b": failing(Chain(), ValueError("first"))}
    with refuses(ValueError, "first") as caught:
        run(modules, BOTH, {"a": [Tap(1, "part", "input")]}, unchanged)
    assert any("disk full" in note for note in caught[0].__notes__)


def test_modules_that_catch_exceptions_are_still_stopped() -> None:
    """``except Exception`` does not see the stop; ``except BaseException`` does, and the next tap stops it again."""
    went_on: list[str] = []

    class Careful(Chain):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.one(x)
            except Exception:
                went_on.append("fallback")
                raise

    class Stubborn(Chain):
        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.one(x)
                went_on.append("past the tap")
            except BaseException:  # noqa: BLE001
                pass
            try:
                return self.two(x)
            finally:
                raise OSError("end")

    modules = {"a": Careful(), "b": Stubborn(), "c": failing(Chain(), ValueError("first"))}
    taps = {n: [Tap(1, "one", "input"), Tap(2, "two", "input")] for n in "ab"}
    with refuses(ValueError, "first") as caught:
        run(modules, {n: {"x": X} for n in modules}, taps, unchanged)
    assert went_on == []
    assert any("OSError('end')" in note for note in caught[0].__notes__), "it was not stopped a second time"
    assert hooks_of(*modules.values()) == 1


def test_nothing_is_kept_alive() -> None:
    """Outputs, and with them a graph's activations, are freed when the caller lets go, without the cycle collector."""
    for fails in (False, True):
        modules, alive = pair(), []

        def exchange(step: int, x: dict[str, Tensor], alive: Any = alive, fails: bool = fails) -> dict[str, Tensor]:
            alive += [weakref.ref(tensor) for tensor in x.values()]
            if fails:
                raise RuntimeError
            return {name: tensor * 2 for name, tensor in x.items()}

        gc.collect()
        gc.disable()
        try:
            try:
                out = run(modules, BOTH, PAIR, exchange)
                alive += [weakref.ref(tensor) for tensor in out.values()]
                del out
            except RuntimeError:
                pass
            assert len(alive) == (2 if fails else 4)
            assert [ref() for ref in alive] == [None] * len(alive)
        finally:
            gc.enable()
