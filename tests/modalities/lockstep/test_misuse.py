"""Taps, calls and answers that cannot work are refused, and the message says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.lockstep import Tap, run
from tests.internals import hooks_of
from tests.modalities.lockstep.parts import BOTH, ENCODERS, PAIR, Chain, X, pair, unchanged, wav2vec2
from tests.refusals import refuses


class Odd(nn.Module):
    """Layers that are skipped, called twice, called in another order, or given no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.never = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.words, self.silent = Words(), Words()

    def forward(self, x: Tensor) -> Tensor:
        self.silent()
        self.words("text", x=x)
        return self.one(self.two(self.one(x)))


class Words(nn.Module):
    def forward(self, word: str | None = None, **rest: Any) -> str | None:
        return word


CALL: dict[str, Any] = {"a": {"x": X}}
BAD: dict[str, tuple[list[Tap], tuple[object, ...]]] = {
    "unknown path": ([Tap(0, "nevr", "input")], ("'nevr'", "'never'")),
    "unknown nested path": ([Tap(0, "one.weight", "input")], ("'one.weight'",)),
    "side": ([Tap(0, "one", "ouptut")], ("'ouptut'", "'output'")),
    "same step": ([Tap(0, "one", "input"), Tap(0, "two", "input")], ("step 0",)),
    "same place": ([Tap(0, "two", "input"), Tap(1, "two", "input")], ("the input of 'two'",)),
    "never reached": ([Tap(0, "never", "input")], ("'never' (step 0)", "layerdrop")),
    "twice": ([Tap(0, "one", "input"), Tap(1, "two", "input")], ("'one' (step 0)", "ALBERT")),
    "order": ([Tap(0, "two", "input"), Tap(1, "one", "input")], ("'one' (step 1)", "'two' (step 0)")),
    "no tensor": ([Tap(0, "words", "input")], ("the input of 'words'", "a str")),
    "no argument": ([Tap(0, "silent", "input")], ("the input of 'silent'", "a NoneType")),
    "no result": ([Tap(0, "silent", "output")], ("the output of 'silent'", "a NoneType")),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_taps(case: str) -> None:
    taps, facts = BAD[case]
    module = Odd()
    with refuses(ConfigError, *facts):
        run({"a": module, "b": Chain()}, CALL | {"b": {"x": X}}, {"a": taps, "b": PAIR["b"]}, unchanged)
    assert hooks_of(module) == 0


def test_module_itself_in_messages() -> None:
    with refuses(ConfigError, "step 0", "a str"):
        run({"a": Words()}, {"a": {"word": "text"}}, {"a": [Tap(0, "", "output")]}, unchanged)


@pytest.mark.parametrize(
    ("calls", "taps", "facts"),
    [
        ({"a": {"x": X}}, {"b": []}, ("module", "'b'", "a")),
        ({"a": {"x": X}, "c": {}}, {}, ("module", "'c'", "a")),
        ({}, {}, (["a"],)),
    ],
)
def test_names_must_match(calls: Any, taps: Any, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        run({"a": Chain()}, calls, taps, unchanged)


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        (lambda x: None, ("step=0", "a NoneType")),
        (lambda x: {"c": x["a"]}, ("step 0", "'c'")),
        (lambda x: {"a": x["a"].mean(-1, keepdim=True)}, ("'a'", "(1, 3) torch.float32 cpu", "(1, 1)")),
        (lambda x: {"a": x["a"].double()}, ("'a'", "torch.float32", "torch.float64")),
        (lambda x: {"a": x["a"].to("meta")}, ("'a'", "cpu", "meta")),
        (lambda x: {"a": 1.0}, ("'a'", "float")),
    ],
)
def test_what_exchange_may_return(answer: Callable[[dict[str, Tensor]], Any], facts: tuple[object, ...]) -> None:
    modules = pair()
    with refuses(ConfigError, *facts):
        run(modules, BOTH, PAIR, lambda step, x: answer(x))
    assert hooks_of(*modules.values()) == 0


def test_layer_drop_and_checkpointing_are_errors() -> None:
    call = {"a": ENCODERS["wav2vec2"][1]}
    taps = {"a": [Tap(0, "encoder.layers.0.feed_forward", "input")]}
    dropped = wav2vec2(layerdrop=1.0, mask_time_prob=0.0).train()
    with refuses(ConfigError, "layerdrop"):
        run({"a": dropped}, call, taps, unchanged)
    checkpointed = wav2vec2(layerdrop=0.0, mask_time_prob=0.0).train()
    run({"a": checkpointed}, call, taps, unchanged)
    layer: Any = checkpointed.get_submodule("encoder.layers.0")
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, checkpoint
    with refuses(ConfigError, "'a'", "'encoder.layers.0.feed_forward'"):
        run({"a": checkpointed}, call, taps, unchanged)
    run({"a": checkpointed.eval()}, call, taps, unchanged)
