"""Taps, calls and answers that cannot work are refused, and the message says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.lockstep import Tap, run
from tests.modalities.lockstep.parts import BOTH, ENCODERS, PAIR, Chain, X, hooks_of, pair, unchanged, wav2vec2


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
BAD: dict[str, tuple[list[Tap], list[str]]] = {
    "unknown path": ([Tap(0, "nevr", "input")], ["no submodule 'nevr'", "'never'"]),
    "unknown nested path": ([Tap(0, "one.weight", "input")], ["no submodule 'one.weight'"]),
    "side": ([Tap(0, "one", "ouptut")], ["'ouptut'", "Did you mean 'output'"]),
    "same step": ([Tap(0, "one", "input"), Tap(0, "two", "input")], ["two taps with step 0"]),
    "same place": ([Tap(0, "two", "input"), Tap(1, "two", "input")], ["two taps at the input of 'two'"]),
    "never reached": ([Tap(0, "never", "input")], ["without reaching", "'never' (step 0)", "layerdrop"]),
    "twice": ([Tap(0, "one", "input"), Tap(1, "two", "input")], ["'one' (step 0) twice", "ALBERT"]),
    "order": ([Tap(0, "two", "input"), Tap(1, "one", "input")], ["'one' (step 1) before", "'two' (step 0)"]),
    "no tensor": ([Tap(0, "words", "input")], ["the input of 'words'", "holds no tensor but a str"]),
    "no argument": ([Tap(0, "silent", "input")], ["the input of 'silent'", "no tensor but a NoneType"]),
    "no result": ([Tap(0, "silent", "output")], ["the output of 'silent'", "no tensor but a NoneType"]),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_taps(case: str) -> None:
    taps, says = BAD[case]
    module = Odd()
    with pytest.raises(ConfigError) as caught:
        run({"a": module, "b": Chain()}, CALL | {"b": {"x": X}}, {"a": taps, "b": PAIR["b"]}, unchanged)
    for phrase in says:
        assert phrase in str(caught.value), str(caught.value)
    assert hooks_of(module) == 0


def test_module_itself_in_messages() -> None:
    with pytest.raises(ConfigError, match=r"the output of the module itself \(step 0\) holds no tensor but a str"):
        run({"a": Words()}, {"a": {"word": "text"}}, {"a": [Tap(0, "", "output")]}, unchanged)


@pytest.mark.parametrize(
    ("calls", "taps", "says"),
    [
        ({"a": {"x": X}}, {"b": []}, "Unknown module 'b'"),
        ({"a": {"x": X}, "c": {}}, {}, "Unknown module 'c'"),
        ({}, {}, "No call for"),
    ],
)
def test_names_must_match(calls: Any, taps: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run({"a": Chain()}, calls, taps, unchanged)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: None, "it returned a NoneType"),
        (lambda x: {"c": x["a"]}, "Unknown module at step 0"),
        (lambda x: {"a": x["a"].mean(-1, keepdim=True)}, r"\(1, 3\) torch.float32 cpu; it returned \(1, 1\)"),
        (lambda x: {"a": x["a"].double()}, "torch.float64"),
        (lambda x: {"a": x["a"].to("meta")}, "meta"),
        (lambda x: {"a": 1.0}, "it returned float"),
    ],
)
def test_what_exchange_may_return(answer: Callable[[dict[str, Tensor]], Any], says: str) -> None:
    modules = pair()
    with pytest.raises(ConfigError, match=says):
        run(modules, BOTH, PAIR, lambda step, x: answer(x))
    assert hooks_of(*modules.values()) == 0


def test_layer_drop_and_checkpointing_are_errors() -> None:
    call = {"a": ENCODERS["wav2vec2"][1]}
    taps = {"a": [Tap(0, "encoder.layers.0.feed_forward", "input")]}
    dropped = wav2vec2(layerdrop=1.0, mask_time_prob=0.0).train()
    with pytest.raises(ConfigError, match="layerdrop"):
        run({"a": dropped}, call, taps, unchanged)
    checkpointed = wav2vec2(layerdrop=0.0, mask_time_prob=0.0).train()
    run({"a": checkpointed}, call, taps, unchanged)
    layer: Any = checkpointed.get_submodule("encoder.layers.0")
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, checkpoint
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        run({"a": checkpointed}, call, taps, unchanged)
    run({"a": checkpointed.eval()}, call, taps, unchanged)
