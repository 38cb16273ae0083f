"""Attribution: withheld modalities, against games with known values, and on every kind of multimodal system."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bayes_adapters import (
    AdapterModel,
    Batch,
    Bernoulli,
    Categorical,
    Frames,
    HeteroscedasticGaussian,
    Tagging,
    plots,
    predict,
)
from bayes_adapters.attribution import Attribution, attribute, shapley
from bayes_adapters.bootstrap import paired_bootstrap
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, Hypernetwork, PooledContext
from bayes_adapters.models import CoLA, ConcatLoRA, FusionLoRA, LoRA, StochasticCore, Wander
from tests.helpers import CONTEXT, bert, core_model, fill_B, token_batch, whisper

PARTS = ("total", "aleatoric", "epistemic")
LN2 = math.log(2)


class Game(LoRA):
    """What is said depends on the modalities given and on the draw's number alone: outputs[subset, draw]."""

    def __init__(self, likelihood: nn.Module, names: Sequence[str], outputs: Tensor) -> None:
        super().__init__(bert(1), likelihood)
        self.names, self.table = list(names), outputs

    def outputs(self, features: Tensor, batch: Batch) -> Tensor:
        given = sum(batch.context[name].present.long() << i for i, name in enumerate(self.names))
        draw = torch.arange(len(features) // batch.size) % self.table.shape[1]
        return self.table[given][:, draw].transpose(0, 1).reshape(len(features), -1)


def game_batch(names: Sequence[str], size: int = 3, lacking: dict[str, Sequence[int]] | None = None) -> Batch:
    def frames(name: str) -> Frames:
        mask = torch.ones(size, 2, dtype=torch.bool)
        mask[list((lacking or {}).get(name, []))] = False
        return Frames(torch.randn(size, 2, 3), mask)

    return Batch({"input_ids": torch.zeros(size, 4, dtype=torch.long)}, None, {name: frames(name) for name in names})


def play(outputs: Tensor, names: Sequence[str] = "ab", likelihood: nn.Module | None = None, **options: Any) -> Any:
    """Attribute a game; ``outputs`` are of shape (subsets, draws, K), subsets numbered by bits."""
    model = Game(likelihood or Bernoulli(), names, outputs)
    options = {"num_samples": outputs.shape[1], "method": "shapley"} | options
    return attribute(model, Delta(model), options.pop("data", None) or game_batch(names), **options)


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# games with known values


@pytest.mark.parametrize(("method", "expected"), [("withhold", -LN2), ("shapley", -LN2 / 2)])
def test_exclusive_or_needs_both(method: str, expected: float) -> None:
    """y = a xor b: one of them says nothing, both say all."""
    found = play(torch.tensor([0.0, 0.0, 0.0, 60.0])[:, None, None], method=method)
    for name in "ab":
        torch.testing.assert_close(found.changes[name].total, torch.full((3,), expected).double(), rtol=1e-6, atol=0)
        assert (found.changes[name].epistemic == 0).all()
    torch.testing.assert_close(found.changes["a"], found.changes["b"], rtol=0, atol=0)


def test_additive_gaussian_in_closed_form() -> None:
    """y = a + b + ε with Var a = 3, Var b = 1, Var ε = 1: what is not given adds its variance."""
    variance = torch.tensor([5.0, 2.0, 4.0, 1.0])  # given: none, a, b, both
    inverse_softplus = (variance.sqrt() - 1e-4).expm1().log() - math.log(math.e - 1)
    outputs = torch.stack([torch.zeros(4), inverse_softplus], -1)[:, None]
    found = play(outputs, likelihood=HeteroscedasticGaussian())
    h = {
        k: 0.5 * math.log(2 * math.pi * math.e * v)
        for k, v in zip(("", "a", "b", "ab"), variance.tolist(), strict=True)
    }
    expected = {
        "a": ((h["a"] - h[""]) + (h["ab"] - h["b"])) / 2,  # −½ (½ log 5/2 + ½ log 4)
        "b": ((h["b"] - h[""]) + (h["ab"] - h["a"])) / 2,
    }
    alone = play(outputs, likelihood=HeteroscedasticGaussian(), method="withhold")
    for name, other in (("a", "b"), ("b", "a")):
        assert found.changes[name].total.tolist() == pytest.approx([expected[name]] * 3, rel=1e-5)
        assert alone.changes[name].total.tolist() == pytest.approx([h["ab"] - h[other]] * 3, rel=1e-5)
    assert found.uncertainty[frozenset()].total.tolist() == pytest.approx([h[""]] * 3, rel=1e-6)


def test_one_modality_is_epistemic_and_the_other_aleatoric() -> None:
    """Without a the draws contradict each other, without b every draw is undecided."""
    c = 2.0
    outputs = torch.tensor([[0.0, 0.0], [0.0, 0.0], [c, -c], [8.0, 8.0]])[..., None]
    found = play(outputs, method="withhold", num_samples=4)
    sure, torn = entropy(sigmoid(8.0)), entropy(sigmoid(c))
    a, b = ([float(getattr(found.changes[m], part)[0]) for part in PARTS] for m in "ab")
    assert a == pytest.approx([sure - LN2, sure - torn, -(LN2 - torn)], abs=1e-6)
    assert b == pytest.approx([sure - LN2, sure - LN2, 0.0], abs=1e-6)


def test_a_modality_that_is_not_read_changes_nothing_and_symmetric_ones_share() -> None:
    by_number = torch.tensor([[0.1, 0.9], [1.0, 2.0], [3.0, -1.0]])  # of the readers a and c that are given
    counts = torch.tensor([(i & 1) + (i >> 2) for i in range(8)])
    found = play(by_number[counts][..., None], names="abc")
    for part in range(3):
        assert (found.changes["b"][part] == 0).all(), "exactly"
        torch.testing.assert_close(found.changes["a"][part], found.changes["c"][part], rtol=0, atol=1e-15)
    assert (found.changes["a"].aleatoric.abs() > 0.01).all()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10**6))
def test_shapley_is_the_average_over_all_orders_and_adds_up(count: int, seed: int) -> None:
    names = "abc"[:count]
    outputs = 2 * torch.randn(2**count, 3, 2, generator=torch.Generator().manual_seed(seed))
    found = play(outputs, names, Categorical(2))
    everything, nothing = found.uncertainty[frozenset(names)], found.uncertainty[frozenset()]
    assert len(found.uncertainty) == 2**count
    for part in range(3):
        total = torch.stack([found.changes[name][part] for name in names]).sum(0)
        torch.testing.assert_close(total, everything[part] - nothing[part], rtol=0, atol=1e-14)
    for name in names:
        marginal = []
        for order in permutations(names):
            before = frozenset(order[: order.index(name)])
            marginal.append(found.uncertainty[before | {name}].total - found.uncertainty[before].total)
        torch.testing.assert_close(found.changes[name].total, torch.stack(marginal).mean(0), rtol=0, atol=1e-14)
    for change in found.changes.values():
        torch.testing.assert_close(change.total, change.aleatoric + change.epistemic, rtol=0, atol=1e-6)


def test_shapley_of_a_game_that_lacks_a_subset() -> None:
    with pytest.raises(ConfigError, match="2 players have 4 subsets; got values of 3"):
        shapley({frozenset(s): torch.zeros(1) for s in ("", "a", "ab")})


def test_examples_that_lack_a_modality_are_not_changed_by_it() -> None:
    outputs = torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None]
    batch = game_batch("ab", lacking={"a": [1]})
    for method in ("withhold", "shapley"):
        found = play(outputs, method=method, data=batch)
        assert found.changes["a"].total[1] == 0
        assert (found.changes["a"].total[[0, 2]] != 0).all()
        assert found.changes["b"].total[1].item() == pytest.approx(entropy(sigmoid(2.0)) - LN2, abs=1e-6)


def test_what_is_not_asked_about_is_always_given() -> None:
    outputs = torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None]
    found = play(outputs, modalities=["b"])
    expected = entropy(sigmoid(4.0)) - entropy(sigmoid(1.0))
    assert found.modalities == ["b"]
    assert found.changes["b"].total[0].item() == pytest.approx(expected, abs=1e-6)
    assert found.changes["b"].total.tolist() == play(outputs, method="withhold").changes["b"].total.tolist()


# real systems


def cola(**encoders: nn.Module) -> CoLA:
    nets = nn.ModuleDict(encoders or {"text": bert(1), "audio": whisper(1)})
    model = fill_B(CoLA(nets, Bernoulli(), rank=2, alpha=4.0))
    with torch.no_grad():
        for null in model.null.values():
            null.normal_()
    return model  # type: ignore[return-value]


def cola_batch(names: Sequence[str] = ("text", "audio"), size: int = 4) -> Batch:
    inputs: dict[str, Tensor] = {}
    for name in names:
        if name == "audio":
            inputs["audio.input_features"] = torch.randn(size, 8, 20)
        else:
            inputs[f"{name}.input_ids"] = torch.randint(0, 40, (size, 5))
    return Batch(inputs, torch.ones(size))


def context_system(name: str) -> tuple[AdapterModel, Any, Batch]:
    if name == "fusion":
        model: AdapterModel = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT)
        return model, Delta(model), token_batch()
    if name == "cola":
        model = cola()
        return model, Hypernetwork(model, gamma=4, scale="softplus"), cola_batch()
    model = core_model()
    guides: dict[str, Any] = {"cross_attention": CrossAttention, "pooled": PooledContext}
    guide = guides[name](model, context_dim=CONTEXT, dim=4, scale="softplus")
    with torch.no_grad():
        for null in guide.reader.null.values():
            null.normal_()
    return model, guide, token_batch()


@pytest.mark.parametrize("name", ["cross_attention", "pooled", "fusion", "cola"])
def test_the_change_is_the_difference_of_two_predictions(name: str) -> None:
    model, guide, batch = context_system(name)
    found = attribute(model, guide, batch, num_samples=5, seed=3)
    if name == "cola":
        without = Batch({k: v for k, v in batch.inputs.items() if not k.startswith("audio")}, batch.targets)
    else:
        without = batch.without("audio")
    full, withheld = (predict(model, guide, b, num_samples=5, seed=3) for b in (batch, without))
    for part in PARTS:
        expected = getattr(full, part).double() - getattr(withheld, part).double()
        torch.testing.assert_close(getattr(found.changes["audio"], part), expected, rtol=0, atol=3e-6)
    lacks = torch.tensor([2] if name != "cola" else [], dtype=torch.long)
    assert (found.changes["audio"].total[lacks] == 0).all()
    assert found.changes["audio"].total.abs().max() > 1e-5


def test_a_guide_that_does_not_hear_is_not_changed_by_audio() -> None:
    model = core_model()
    found = attribute(model, Contextual(model), token_batch(), num_samples=4)
    assert all((part == 0).all() for part in found.changes["audio"])
    assert found.uncertainty[frozenset({"audio"})].epistemic.max() > 1e-6


def test_other_context_stays_while_one_is_withheld() -> None:
    """With two modalities, one that is withheld is missing, not misspelled."""
    model, guide, batch = context_system("cross_attention")
    both = replace(batch, context={**batch.context, "video": batch.context["audio"]})
    found = attribute(model, guide, both, num_samples=3, method="shapley")
    only = attribute(model, guide, batch, num_samples=3)
    assert (found.changes["video"].total == 0).all()
    torch.testing.assert_close(found.changes["audio"].total, only.changes["audio"].total, rtol=0, atol=1e-15)


def test_three_encoders_may_all_be_withheld() -> None:
    names = ("text", "audio", "more")
    model = cola(text=bert(1), audio=whisper(1), more=bert(1, seed=3))
    found = attribute(model, Hypernetwork(model, gamma=4), cola_batch(names), num_samples=1, method="shapley")
    assert found.modalities == list(names)
    nothing = found.uncertainty[frozenset()].total
    torch.testing.assert_close(nothing, nothing[:1].expand(4), rtol=0, atol=1e-6)  # all examples are alike then
    total = torch.stack([change.total for change in found.changes.values()]).sum(0)
    torch.testing.assert_close(total, found.uncertainty[frozenset(names)].total - nothing, rtol=0, atol=1e-14)


def test_however_the_data_is_cut_and_whatever_its_targets() -> None:
    model, guide, batch = context_system("cross_attention")

    def audio(data: Any) -> tuple[Tensor, list[int]]:
        found = attribute(model, guide, data, num_samples=4, chunk_size=3, method="shapley")
        return found.changes["audio"].total, found.index.tolist()

    reference, numbers = audio(batch)
    assert numbers == [0, 1, 2, 3, 4]
    bare = [Batch(b.inputs, None, b.context) for b in (batch[:2], batch[2:])]
    for data in (bare, iter(bare), [batch[:2], bare[1]]):
        value, numbers = audio(data)
        torch.testing.assert_close(value, reference, rtol=0, atol=3e-6)
        assert numbers == [0, 1, 2, 3, 4]
    value, numbers = audio([batch[:2].without("audio"), batch[2:]])
    assert (value[:2] == 0).all(), "these have no audio at all"
    torch.testing.assert_close(value[2:], reference[2:], rtol=0, atol=3e-6)
    value, numbers = audio(batch[torch.tensor([3, 1])])
    assert numbers == [3, 1]
    torch.testing.assert_close(value, reference[[3, 1]], rtol=0, atol=3e-6)


def test_other_seeds_are_other_draws() -> None:
    model, guide, batch = context_system("cross_attention")
    one, same, two = (attribute(model, guide, batch, num_samples=2, seed=s).changes["audio"].total for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, two)


def test_tags_are_attributed_token_by_token_and_summed_for_the_mean() -> None:
    model = fill_B(StochasticCore(bert(1), Tagging(3)))
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4, scale="softplus")
    batch = token_batch().without_targets()
    change = attribute(model, guide, batch, num_samples=3).changes["audio"].total
    assert change.shape == batch.inputs["input_ids"].shape
    assert (change[~batch.token_mask] == 0).all()
    assert (change[batch.token_mask].abs() > 0).any()
    means = attribute(model, guide, batch, num_samples=3).means(draws=20)["audio"]
    assert means["total"].difference == pytest.approx(change.sum().item() / batch.size)


# intervals, subsets, pictures


def mixed() -> Attribution:
    outputs = torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None]
    return play(outputs, method="withhold", data=game_batch("ab", size=6, lacking={"a": [1, 4]}))


def test_means_are_paired_differences_of_the_uncertainties() -> None:
    found = mixed()
    means = found.means(draws=200, seed=4)
    assert list(means) == ["a", "b"]
    full, without = found.uncertainty[frozenset("ab")], found.uncertainty[frozenset("b")]
    expected = paired_bootstrap(torch.mean, full.total, without.total, draws=200, seed=4)
    assert tuple(means["a"]["total"]) == pytest.approx(tuple(expected), abs=1e-12)
    assert means["a"]["total"].difference == pytest.approx(found.changes["a"].total.mean().item())
    assert means["a"]["total"].low < means["a"]["total"].difference < means["a"]["total"].high
    grouped = found.means(groups=["x", "y", "z"] * 2, draws=200, seed=4)["a"]["total"]
    assert grouped.difference == means["a"]["total"].difference
    assert grouped != means["a"]["total"]


def test_rows() -> None:
    found, lacking = mixed(), torch.tensor([False, True, False, False, True, False])
    some = found[lacking]
    assert some.index.tolist() == [1, 4]
    assert (some.changes["a"].total == 0).all()
    torch.testing.assert_close(some.uncertainty[frozenset("a")].total, found.uncertainty[frozenset("a")].total[lacking])
    assert found[1:3].index.tolist() == [1, 2]
    with pytest.raises(DataError, match="at least two examples"):
        found[:1].means()


def test_bars_show_means_and_intervals() -> None:
    pytest.importorskip("matplotlib")
    values = {
        "audio": {"total": (-0.3, -0.4, -0.25), "aleatoric": (-0.35, -0.5, -0.3), "epistemic": (0.05, 0.0, 0.2)},
        "video": {"total": (0.1, 0.0, 0.2)},
    }
    figure = plots.attribution_bars(values, what="audio")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["audio", "video"]
    total, _, epistemic = [c for c in axes.containers if type(c).__name__ == "BarContainer"]
    np.testing.assert_allclose([bar.get_width() for bar in total], [-0.3, 0.1])
    np.testing.assert_allclose([bar.get_width() for bar in epistemic], [0.05, np.nan])
    segments = total.errorbar.lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 0] for s in segments], [[-0.4, -0.25], [0.0, 0.2]])
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first label is on top"
    assert "by audio (nats)" in axes.get_xlabel()
    assert len(figure.legends[0].get_texts()) == 3
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=40)
    assert out.getvalue().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="at least one label"):
        plots.attribution_bars({})


# withholding and errors


def test_withhold_masks_frames_and_marks_encoders_absent() -> None:
    model, batch = core_model(), token_batch()
    both = replace(batch, context={**batch.context, "video": batch.context["audio"]})
    assert model.withholdable(both) == ["audio", "video"]
    withheld = model.withhold(both, "audio")
    assert not withheld.context["audio"].mask.any()
    assert withheld.context["video"] is both.context["video"]
    assert both.context["audio"].mask.any(), "the batch given is left as it is"
    heard = cola_batch()
    encoders = cola()
    assert encoders.withholdable(heard) == ["text", "audio"]
    assert encoders.withholdable(cola_batch(["audio"])) == ["audio"]
    absent = encoders.withhold(heard, "audio")
    assert absent.inputs["audio.present"].tolist() == [False] * 4
    assert "text.present" not in absent.inputs
    again = replace(heard, inputs={**heard.inputs, "audio.present": torch.tensor([True, False, True, True])})
    assert not encoders.withhold(again, "audio").inputs["audio.present"].any()


def _attribute(guide: type = Contextual, batch: Batch | None = None, **options: Any) -> Any:
    model = core_model()
    return attribute(model, guide(model), token_batch() if batch is None else batch, num_samples=2, **options)


MANY = [f"m{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (
            lambda: _attribute(batch=token_batch().without("audio")),
            ConfigError,
            "always needs the inputs of its backbone.*single modality",
        ),
        (lambda: _attribute(modalities=["adio"]), ConfigError, r"no modality 'adio'.*Did you mean 'audio'.*audio"),
        (lambda: _attribute(modalities=["text"]), ConfigError, "'text'.*only backbone cannot be"),
        (lambda: _attribute(modalities=["audio", "audio"]), ConfigError, "different names"),
        (lambda: _attribute(modalities=[]), ConfigError, r"different names.*got \[\]"),
        (lambda: _attribute(modalities="audio"), ConfigError, "list of different names.*'audio'"),
        (lambda: _attribute(method="shaply"), ConfigError, "Did you mean 'shapley'"),
        (lambda: _attribute(batch=[]), DataError, "it found none"),  # type: ignore[arg-type]
        (lambda: play(torch.zeros(256, 1, 1), MANY), ConfigError, "need 256 predictions; at most 7"),
        (lambda: core_model().withhold(token_batch(), "video"), ConfigError, "no modality 'video'.*audio"),
        (lambda: cola().withhold(cola_batch(), "vision"), ConfigError, "no modality 'vision'.*text, audio"),
        (
            lambda: attribute(core_model(), Contextual(core_model()), token_batch()),
            ConfigError,
            "built for another model",
        ),
    ],
)
def test_errors(call: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        call()


def test_seven_modalities_are_not_too_many() -> None:
    found = play(torch.zeros(128, 1, 1), MANY[:7])
    assert len(found.uncertainty) == 128
    eight = play(torch.zeros(256, 1, 1), MANY, method="withhold")
    assert len(eight.uncertainty) == 9


def test_a_guide_without_null_context_refuses_in_its_own_words() -> None:
    model = core_model()
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4, null_context=False)
    with pytest.raises(DataError, match=r"built with null_context=False"):
        attribute(model, guide, token_batch()[:2], num_samples=2)


@pytest.mark.parametrize("name", ["concat", "wander"])
def test_every_structure_of_several_encoders_can_withhold_each(name: str) -> None:
    nets = nn.ModuleDict({"text": bert(), "audio": whisper()})
    torch.manual_seed(0)
    if name == "concat":
        model: AdapterModel = ConcatLoRA(nets, Bernoulli(), rank=2)
    else:
        model = Wander(nets, Bernoulli(), num_data=9, lengths={"text": 4, "audio": 5}, fusion_rank=3, terms=2)
        nn.init.constant_(model.gate[0], 0.5)
    for null in [*model.null.values(), *getattr(model, "absent", {}).values()]:
        nn.init.normal_(null)
    guide, data = Delta(model), cola_batch()
    assert model.withholdable(data) == ["text", "audio"]
    found = attribute(model, guide, data, method="shapley")
    everything, nothing = predict(model, guide, data), predict(model, guide, model.withhold(data, "text", "audio"))
    total = sum(change.total for change in found.changes.values())
    torch.testing.assert_close(total.float(), everything.total - nothing.total, rtol=1e-4, atol=1e-6)
