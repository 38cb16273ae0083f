"""In lock-step and left alone, modules compute what plain calls compute, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.modalities.lockstep import Tap, run
from tests.helpers import bert
from tests.internals import hooks_of
from tests.modalities.lockstep.parts import ENCODERS, IDS, Chain, X, encoders, unchanged


def test_bit_identical_to_plain_calls() -> None:
    modules, calls, taps = encoders()
    seen: list[tuple[int, list[str]]] = []
    with torch.no_grad():
        plain = {name: module(**calls[name]) for name, module in modules.items()}
        for exchange in (unchanged, lambda step, tensors: (seen.append((step, list(tensors))), tensors)[1]):
            out = run(modules, calls, taps, exchange)
            for name, expected in plain.items():
                assert type(out[name]) is type(expected)
                assert torch.equal(out[name].last_hidden_state, expected.last_hidden_state), name
    assert seen == [(step, list(ENCODERS)) for step in range(4)]
    assert hooks_of(*modules.values()) == 0


@pytest.mark.parametrize("name", list(ENCODERS))
def test_exchange_sees_the_hidden_states(name: str) -> None:
    modules, calls, taps = encoders()
    seen: list[Tensor] = []
    out = run(
        {name: modules[name]},
        {name: {**calls[name], "output_hidden_states": True}},
        {name: taps[name]},
        lambda step, tensors: (seen.append(tensors[name]), {})[1],
    )
    hidden = out[name].hidden_states
    assert torch.equal(seen[0], hidden[0])
    assert torch.equal(seen[1], hidden[1])
    assert torch.equal(seen[2], hidden[1])


def test_hidden_states_of_two_modules_are_kept_apart() -> None:
    """transformers collects hidden states in a context variable; it must not collect the other module's."""
    modules = {"a": bert(seed=1), "b": bert(layers=3, seed=2)}
    calls = {name: {**IDS, "output_hidden_states": True} for name in modules}
    plain = {name: module(**IDS, output_hidden_states=True) for name, module in modules.items()}
    taps = {name: [Tap(i, f"encoder.layer.{i}", "output") for i in range(2)] for name in modules}
    for _ in range(2):
        out = run(modules, calls, taps, unchanged)
        for name, expected in plain.items():
            for a, b in zip(out[name].hidden_states, expected.hidden_states, strict=True):
                torch.testing.assert_close(a, b)


def test_a_replaced_output_is_what_transformers_collects() -> None:
    model = bert()
    for _ in range(2):  # transformers installs its hooks in the first of these calls
        out = run(
            {"a": model},
            {"a": {**IDS, "output_hidden_states": True}},
            {"a": [Tap(0, "encoder.layer.0", "output")]},
            lambda step, tensors: {"a": torch.ones_like(tensors["a"])},
        )
        assert bool((out["a"].hidden_states[1] == 1).all())


def test_modules_without_taps_and_calls_without_arguments() -> None:
    class Fixed(nn.Module):
        def forward(self) -> Tensor:
            return X

    out = run({"a": Fixed(), "b": Chain()}, {"a": {}, "b": {"x": X}}, {}, unchanged)
    assert torch.equal(out["a"], X)
    assert torch.equal(out["b"], Chain()(X))


def test_dropout_masks_come_from_the_callers_generator() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3)).train()
    torch.manual_seed(5)
    expected = model[2](F.dropout(model[0](X)))
    torch.manual_seed(5)
    assert torch.equal(run({"a": model}, {"a": {"input": X}}, {"a": [Tap(0, "1", "input")]}, unchanged)["a"], expected)
