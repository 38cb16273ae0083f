"""What an exchange returns replaces what is at the taps, and steps come in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayes_adapters.modalities.lockstep import Tap, run
from tests.helpers import bert, vit
from tests.modalities.lockstep.parts import BOTH, ENCODERS, IDS, PAIR, Chain, X, pair, unchanged


@pytest.mark.parametrize("side", ["input", "output"])
def test_replacement_is_what_a_hand_written_forward_computes(side: Any) -> None:
    modules = pair()
    a, b = modules["a"], modules["b"]
    taps = {name: [Tap(0, "two", side)] for name in modules}
    out = run(modules, BOTH, taps, lambda step, x: {"a": x["a"] + 2 * x["b"], "b": x["b"] - x["a"]})

    def upto(m: Any, x: Tensor) -> Tensor:
        h = m.one(x).tanh()
        return h if side == "input" else m.two(h)

    def after(m: Any, h: Tensor) -> Tensor:
        return m.three((m.two(h) if side == "input" else h).tanh())

    ha, hb = upto(a, X), upto(b, -X)
    assert torch.equal(out["a"], after(a, ha + 2 * hb))
    assert torch.equal(out["b"], after(b, hb - ha))


def test_bert_and_vit_exchange_pooled_vectors_as_written_by_hand() -> None:
    """Both descriptors are read before either stream is updated, and each enters the other's second block."""
    modules = {"text": bert(), "image": vit()}
    calls: dict[str, dict[str, Tensor]] = {"text": {"input_ids": IDS["input_ids"]}, "image": ENCODERS["vit"][1]}
    taps = {"text": [Tap(0, "encoder.layer.1", "input")], "image": [Tap(0, "layers.1", "input")]}

    def exchange(step: int, h: dict[str, Tensor]) -> dict[str, Tensor]:
        means = {name: x.mean(1, keepdim=True) for name, x in h.items()}
        return {"text": h["text"] + means["image"], "image": h["image"] * means["text"]}

    out = run(modules, calls, taps, exchange)
    text: Any
    image: Any
    text, image = modules["text"], modules["image"]
    h_text = text.encoder.layer[0](text.embeddings(**calls["text"]))
    h_image = image.layers[0](image.embeddings(**calls["image"]))
    new_text = h_text + h_image.mean(1, keepdim=True)
    new_image = h_image * h_text.mean(1, keepdim=True)
    torch.testing.assert_close(out["text"].last_hidden_state, text.encoder.layer[1](new_text))
    torch.testing.assert_close(out["image"].last_hidden_state, image.layernorm(image.layers[1](new_image)))
    assert not torch.allclose(out["text"].last_hidden_state, text(**calls["text"]).last_hidden_state)


def test_unequal_depths_meet_at_the_steps_they_share() -> None:
    modules = {"deep": bert(layers=4), "shallow": bert(layers=2, seed=1)}
    taps = {
        "deep": [Tap(i, f"encoder.layer.{i}", "output") for i in range(4)],
        "shallow": [Tap(3, "encoder.layer.1", "output"), Tap(1, "encoder.layer.0", "output")],
    }
    seen: list[tuple[int, set[str]]] = []
    run(modules, dict.fromkeys(modules, IDS), taps, lambda step, x: (seen.append((step, set(x))), {})[1])
    assert seen == [(0, {"deep"}), (1, {"deep", "shallow"}), (2, {"deep"}), (3, {"deep", "shallow"})]


def test_a_module_runs_ahead_to_its_next_tap_only() -> None:
    order: list[str] = []
    modules = pair()
    for name, module in modules.items():
        for part in ("one", "two", "three"):
            module.get_submodule(part).register_forward_hook(lambda *_, at=name + "." + part: order.append(at))

    def exchange(step: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        order.append(f"{step}:{'+'.join(tensors)}")
        return {}

    run(
        modules,
        BOTH,
        {"a": [Tap(5, "two", "input")], "b": [Tap(-1, "one", "input"), Tap(5, "three", "input")]},
        exchange,
    )
    assert order == ["a.one", "-1:b", "b.one", "b.two", "5:a+b", "a.two", "a.three", "b.three"]


class Pairs(nn.Module):
    """Sends tuples, lists and tensors through its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Module()
        self.part.forward = lambda value: value  # type: ignore[method-assign]

    def forward(self, value: Any) -> Any:
        return self.part(value)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("side", ["input", "output"])
def test_first_element_of_a_tuple_or_list(kind: type, side: Any) -> None:
    value = kind((X, "rest", 3))
    taps = {"a": [Tap(0, "part", side)]}
    same = run({"a": Pairs()}, {"a": {"value": value}}, taps, unchanged)["a"]
    assert same is value
    out = run({"a": Pairs()}, {"a": {"value": value}}, taps, lambda step, x: {"a": x["a"] + 1})["a"]
    assert type(out) is kind
    assert torch.equal(out[0], X + 1)
    assert out[1:] == kind(("rest", 3))
    assert value[0] is X, "the caller's own list was changed"


def test_tap_on_the_module_itself() -> None:
    taps = {"a": [Tap(0, "", "input"), Tap(1, "", "output")]}
    out = run({"a": Chain()}, {"a": {"x": X}}, taps, lambda step, x: {"a": x["a"] * 2} if step == 0 else {})
    assert torch.equal(out["a"], Chain()(2 * X))


def test_taps_sit_next_to_forward() -> None:
    """Another pre-hook's change is seen by the tap; another forward hook sees the replacement."""
    model = Chain()
    seen: list[Tensor] = []
    model.two.register_forward_pre_hook(lambda m, args, kwargs: ((), {"input": kwargs["input"] + 1}), with_kwargs=True)
    model.three.register_forward_hook(lambda m, args, out: seen.append(out))
    got: dict[int, Tensor] = {}

    def exchange(step: int, x: dict[str, Tensor]) -> dict[str, Tensor]:
        got[step] = x["a"]
        return {"a": torch.zeros_like(x["a"])}

    run({"a": model}, {"a": {"x": X}}, {"a": [Tap(0, "two", "input"), Tap(1, "three", "output")]}, exchange)
    assert torch.equal(got[0], model.one(X).tanh() + 1)
    assert torch.equal(seen[0], torch.zeros_like(got[1]))


def test_one_module_under_two_names_and_called_by_exchange() -> None:
    """The hooks act only on the calls that run() made."""
    model = Chain()

    def exchange(step: int, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": x["b"] + model(x["a"])}

    out = run({"a": model, "b": model}, BOTH, PAIR, exchange)
    ha, hb = model.one(X).tanh(), model.one(-X).tanh()
    assert torch.equal(out["a"], model.three(model.two(hb + model(ha)).tanh()))
    assert torch.equal(out["b"], model(-X))


def test_exchange_may_use_up_its_dictionary() -> None:
    modules = pair()
    out = run(modules, BOTH, PAIR, lambda step, x: {"a": x.pop("b"), "b": x.pop("a")})
    expected = run(modules, BOTH, PAIR, lambda step, x: {"a": x["b"], "b": x["a"]})
    assert all(torch.equal(out[name], expected[name]) for name in modules)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_steps_and_depths(data: st.DataObject) -> None:
    """Whatever the taps: each exchange comes once, in order, with exactly the modules that have that step."""
    modules, taps = {}, {}
    for name in "abc"[: data.draw(st.integers(1, 3))]:
        depth = data.draw(st.integers(1, 5))
        modules[name] = nn.Sequential(*[nn.Linear(2, 2) for _ in range(depth)])
        places = data.draw(st.lists(st.integers(0, 2 * depth - 1), unique=True).map(sorted))
        steps = data.draw(st.lists(st.integers(-3, 9), unique=True, min_size=len(places), max_size=len(places)))
        taps[name] = [
            Tap(s, str(p // 2), ("input", "output")[p % 2]) for s, p in zip(sorted(steps), places, strict=True)
        ]
    seen: list[tuple[int, list[str]]] = []
    calls = {name: {"input": torch.ones(1, 2)} for name in modules}
    out = run(modules, calls, taps, lambda s, x: (seen.append((s, list(x))), {n: -v for n, v in x.items()})[1])
    steps = sorted({t.step for listed in taps.values() for t in listed})
    assert seen == [(s, [n for n in modules if any(t.step == s for t in taps[n])]) for s in steps]
    for name, module in modules.items():
        h = torch.ones(1, 2)
        for i, layer in enumerate(module):
            for side in ("input", "output"):
                h = layer(h) if side == "output" else h
                h = -h if any((t.path, t.side) == (str(i), side) for t in taps[name]) else h
        assert torch.equal(out[name], h)
