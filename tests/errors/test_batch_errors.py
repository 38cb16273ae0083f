"""Batches that cannot be and arguments of another type, as users run them: without the tests' type checker."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Frames
from bayes_adapters.analysis.attribution import attribute
from bayes_adapters.guides import CrossAttention, PooledContext
from bayes_adapters.likelihoods import Tasks
from bayes_adapters.reliability import FrameDensity, Reliability
from tests.helpers import CONTEXT, core_model

IDS, ONES = torch.ones(4, 6, dtype=torch.long), torch.ones(4, 6, dtype=torch.long)
HOLE = torch.tensor([1, 0, 1, 0])[:, None] * ONES
FRAMES = torch.randn(4, 9, 2)
TRUE = torch.ones(4, 9, dtype=torch.bool)
BATCHES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "mask of another length": (
        lambda: Frames(FRAMES, TRUE[:, :5]),
        ["(4, 5)", "(4, 9, 2)", "(B, S) = (4, 9)", "down-sampled"],
    ),
    "mask of other rows": (lambda: Frames(FRAMES, TRUE[:2]), ["(2, 9)", "(B, S) = (4, 9)"]),
    "mask of numbers": (lambda: Frames(FRAMES, TRUE.long()), ["must be bool", "torch.int64"]),
    "pooled context": (lambda: Frames(FRAMES[:, 0], TRUE), ["(B, S, d)", "(4, 2)", "values[:, None]"]),
    "context of integers": (lambda: Frames(FRAMES.long(), TRUE), ["floating point", "torch.int64"]),
    "rows without tokens": (
        lambda: Batch({"input_ids": IDS, "attention_mask": HOLE}),
        ["Rows [1, 3]", "no real token"],
    ),
    "token mask of another length": (
        lambda: Batch({"input_ids": IDS, "attention_mask": ONES[:, :5]}),
        ["(4, 5)", "(4, 6)", "tokenizer"],
    ),
    "no examples": (lambda: Batch({"input_ids": IDS[:0], "attention_mask": ONES[:0]}), ["0 examples", "filter"]),
    "no inputs": (lambda: Batch({}), ["at least one backbone input", "input_ids"]),
    "inputs of two sizes": (
        lambda: Batch({"input_ids": IDS, "attention_mask": ONES[:3]}),
        ["same number of examples", "inputs['input_ids']\": 4", "inputs['attention_mask']\": 3"],
    ),
    "too few targets": (lambda: Batch({"input_ids": IDS}, torch.zeros(3)), ["same number of examples", "'targets': 3"]),
    "too much context": (
        lambda: Batch({"input_ids": IDS[:3]}, None, {"audio": Frames(FRAMES, TRUE)}),
        ["same number of examples", "context['audio']\": 4"],
    ),
    "too few numbers": (lambda: Batch({"input_ids": IDS}, index=torch.arange(3)), ["same number", "'index': 3"]),
    "one number": (lambda: Batch({"input_ids": torch.tensor(3)}), ["inputs['input_ids']", "without dimensions"]),
    "one text": (lambda: Batch({"input_ids": IDS[0]}, torch.tensor([1])), ["(6,)", "(B, T)", "ids[None]"]),
    "one text of several encoders": (lambda: Batch({"text.input_ids": IDS[0]}), ["inputs['text.input_ids']", "(6,)"]),
    "one row": (lambda: Batch({"input_ids": IDS})[2], ["got the int 2", "a slice", "batch[2:3]", "torch.tensor([2])"]),
    "the last row": (
        lambda: Batch({"input_ids": IDS})[-1],
        ["the int -1", "batch[-1:] or batch[torch.tensor([-1])]"],
    ),
    "a row's number in a tensor": (
        lambda: Batch({"input_ids": IDS})[torch.tensor(2)],
        ["of shape ()", "(n,)"],
    ),
    "rows of a table": (lambda: Batch({"input_ids": IDS})[torch.ones(4, 6).bool()], ["shape (4, 6)", "(n,)"]),
    "rows in a list": (lambda: Batch({"input_ids": IDS})[[0, 2]], ["got a list"]),  # type: ignore[index]
    "one row's frames": (lambda: Frames(FRAMES, TRUE)[2], ["got the int 2", "frames[2:3]"]),  # type: ignore[index]
    "loop over rows": (lambda: list(Batch({"input_ids": IDS})), ["got the int 0", "slice"]),  # type: ignore[call-overload]
    "lists": (lambda: Batch({"input_ids": [[1, 2]]}), ["inputs['input_ids']", "a list", "return_tensors='pt'"]),  # type: ignore[dict-item]
}


UNTYPED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a density for a reliability": (
        lambda: CrossAttention(core_model(), context_dim=CONTEXT, reliability=FrameDensity(CONTEXT, 1)),  # type: ignore
        ["a FrameDensity", "reliability=Reliability(density)"],
    ),
    "yes for a reliability": (
        lambda: PooledContext(core_model(), context_dim=CONTEXT, reliability=True),  # type: ignore
        ["a bool", "reliability=Reliability(density)"],
    ),
    "one tensor for a list of groups": (
        lambda: FrameDensity.fit(FRAMES[0], [Frames(FRAMES, TRUE)]),  # type: ignore
        ["groups must be a list of tensors (N, d)", "[groups]"],
    ),
    "Frames for groups of frames": (
        lambda: FrameDensity.fit(Frames(FRAMES, TRUE), [Frames(FRAMES, TRUE)]),  # type: ignore
        ["groups must be a list of tensors (N, d)", "got one Frames"],
    ),
    "weights of tasks in a list": (
        lambda: Tasks({"a": Bernoulli()}, [1.0]),  # type: ignore
        ["weights is a dictionary", "a list", "['a']"],
    ),
    "a word for a task's weight": (
        lambda: Tasks({"a": Bernoulli()}, {"a": "x"}),  # type: ignore
        ["'a'", "positive, finite number", "'x'"],
    ),
    "yes for a task's weight": (lambda: Tasks({"a": Bernoulli()}, {"a": True}), ["'a'", "number; got True"]),
    "one Frames for a list of them": (
        lambda: FrameDensity.fit([FRAMES[0]], Frames(FRAMES, TRUE)),  # type: ignore
        ["held_out must be a list of Frames", "[held_out]"],
    ),
    "a config for a density": (
        lambda: Reliability({"context_dim": 3, "components": 1}),  # type: ignore
        ["a dict", "FrameDensity.fit", "Reliability.from_config"],
    ),
    "other draws for every subset": (
        lambda: attribute(None, None, Batch({"input_ids": torch.ones(2, 3).long()}), seed=None),  # type: ignore
        ["seed must be an integer; got None"],
    ),
}

_PLAIN = """
import json, runpy
answers, cases = {}, runpy.run_path("tests/errors/test_batch_errors.py")
for case, (make, _) in (cases["BATCHES"] | cases["UNTYPED"]).items():
    try:
        answers[case] = ["no error", repr(make())]
    except Exception as error:
        answers[case] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """What each case raises as users run it: the tests' own type checker would stop wrong shapes earlier."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _PLAIN], cwd=root, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_that_cannot_be(case: str, answers: dict[str, list[str]]) -> None:
    kind, message = answers[case]
    assert kind == "DataError", message
    for phrase in BATCHES[case][1]:
        assert phrase in message


@pytest.mark.parametrize("case", UNTYPED)
def test_an_argument_of_another_type(case: str, answers: dict[str, list[str]]) -> None:
    kind, message = answers[case]
    assert kind == "ConfigError", message
    for phrase in UNTYPED[case][1]:
        assert phrase in message
