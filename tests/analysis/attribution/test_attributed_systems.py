"""Attribution on every kind of multimodal system: differences of its own predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import AdapterModel, Batch, Bernoulli, Tagging, predict
from bayes_adapters.analysis.attribution import attribute
from bayes_adapters.guides import Contextual, CrossAttention, Delta, Hypernetwork, PooledContext
from bayes_adapters.models import ConcatLoRA, FusionLoRA, StochasticCore, Wander
from tests.analysis.attribution.parts import PARTS, cola, cola_batch
from tests.helpers import CONTEXT, bert, core_model, fill_B, token_batch, whisper


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
