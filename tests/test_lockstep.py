"""Modules in lock-step compute what plain calls compute, exchange what they should, and clean up after errors."""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine import runtime
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import DistilBertConfig, DistilBertModel, Wav2Vec2Config, Wav2Vec2Model

from bayes_adapters.errors import ConfigError
from bayes_adapters.lockstep import Tap, run
from tests.helpers import VOCAB, WIDTH, bert, vit, whisper


def distilbert(layers: int = 2) -> nn.Module:
    torch.manual_seed(1)
    config = DistilBertConfig(vocab_size=VOCAB, dim=WIDTH, n_layers=layers, n_heads=2, hidden_dim=24)
    return DistilBertModel(config).eval()


def wav2vec2(layers: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(2)
    config = Wav2Vec2Config(
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(2, 2),
        conv_kernel=(3, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        **options,
    )
    return Wav2Vec2Model(config).eval()


IDS = {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
ENCODERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], str]] = {
    "bert": (bert, IDS, "encoder.layer"),
    "distilbert": (distilbert, IDS, "transformer.layer"),
    "vit": (vit, {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}, "layers"),
    "whisper": (whisper, {"input_features": torch.linspace(-1, 1, 2 * 8 * 20).reshape(2, 8, 20)}, "layers"),
    "wav2vec2": (wav2vec2, {"input_values": torch.linspace(-1, 1, 80).reshape(2, 40).sin()}, "encoder.layers"),
}
"""name → how to build it, what to call it with, where its blocks are."""


def encoders() -> tuple[dict[str, nn.Module], dict[str, dict[str, Tensor]], dict[str, list[Tap]]]:
    """All encoders, with a tap at the input and output of each block."""
    modules = {name: build() for name, (build, _, _) in ENCODERS.items()}
    calls = {name: call for name, (_, call, _) in ENCODERS.items()}
    taps = {
        name: [Tap(2 * i + side, f"{path}.{i}", ("input", "output")[side]) for i in range(2) for side in range(2)]
        for name, (_, _, path) in ENCODERS.items()
    }
    return modules, calls, taps


def unchanged(step: int, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return {}


def hooks_of(*modules: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for root in modules for m in root.modules())


class Chain(nn.Module):
    """Three linear layers, the middle one with a keyword argument."""

    def __init__(self, width: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two, self.three = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(input=self.one(x).tanh()).tanh())


X = torch.tensor([[0.5, -1.0, 2.0]])
PAIR = {"a": [Tap(0, "two", "input")], "b": [Tap(0, "two", "input")]}


def pair() -> dict[str, nn.Module]:
    return {"a": Chain(seed=1), "b": Chain(seed=2)}


BOTH = {"a": {"x": X}, "b": {"x": -X}}


# ---- the same numbers as plain calls


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


# ---- what a replacement does


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


def test_modules_without_taps_and_calls_without_arguments() -> None:
    class Fixed(nn.Module):
        def forward(self) -> Tensor:
            return X

    out = run({"a": Fixed(), "b": Chain()}, {"a": {}, "b": {"x": X}}, {}, unchanged)
    assert torch.equal(out["a"], X)
    assert torch.equal(out["b"], Chain()(X))


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


# ---- autograd, modes and contexts


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


class Inside(nn.Module):
    """Runs its layer within a context of its own."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.part, self.last, self.context = nn.Linear(3, 3), nn.Linear(3, 3), context
        self.left = False

    def forward(self, x: Tensor) -> Tensor:
        try:
            with self.context():
                h = self.part(x)
        finally:
            self.left = True
        return self.last(h.clone().to(x.dtype))


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
        with pytest.raises(KeyError, match="stop"):
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


# ---- Pyro


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


# ---- a run inside a run


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

    with pytest.raises(ZeroDivisionError, match="no exchange"):
        run({"p": p, "q": q}, {"p": {"x": X}, "q": {"x": X}}, OUTER, exchange)
    assert p.cleaned
    assert q.cleaned
    assert hooks_of(p, q) == 0
    assert torch.equal(p(X), p.by_hand(X, lambda a2: a2))


# ---- errors


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
    with pytest.raises(ValueError, match="first") as caught:
        run(modules, BOTH, {"a": [Tap(1, "part", "input")]}, unchanged)
    assert any("disk full" in note for note in caught.value.__notes__)


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
    with pytest.raises(ValueError, match="first") as caught:
        run(modules, {n: {"x": X} for n in modules}, taps, unchanged)
    assert went_on == []
    assert any("OSError('end')" in note for note in caught.value.__notes__), "it was not stopped a second time"
    assert hooks_of(*modules.values()) == 1


def test_exchange_may_use_up_its_dictionary() -> None:
    modules = pair()
    out = run(modules, BOTH, PAIR, lambda step, x: {"a": x.pop("b"), "b": x.pop("a")})
    expected = run(modules, BOTH, PAIR, lambda step, x: {"a": x["b"], "b": x["a"]})
    assert all(torch.equal(out[name], expected[name]) for name in modules)


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


def test_dropout_masks_come_from_the_callers_generator() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3)).train()
    torch.manual_seed(5)
    expected = model[2](F.dropout(model[0](X)))
    torch.manual_seed(5)
    assert torch.equal(run({"a": model}, {"a": {"input": X}}, {"a": [Tap(0, "1", "input")]}, unchanged)["a"], expected)
