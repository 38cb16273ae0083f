"""Gates: their ends are the missing and the whole context, and a context without information costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Frames, load, predict, save
from bayes_adapters.data.transforms import ModalityDropout
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Amortised, Contextual, CrossAttention, PooledContext
from bayes_adapters.models import FusionCore, FusionLoRA
from bayes_adapters.reliability import choose_gate
from bayes_adapters.training import batches, fit, transformed
from tests.helpers import CONTEXT, assert_same, bert, core_model, fill_B, logits, moments, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses

FAMILIES: dict[str, Any] = {
    "cross": lambda m, **o: CrossAttention(m, context_dim=CONTEXT, dim=4, heads=2, **o),
    "shared": lambda m, **o: CrossAttention(m, context_dim=CONTEXT, dim=4, share_kv=True, **o),
    "pooled": lambda m, **o: PooledContext(m, context_dim=CONTEXT, dim=4, **o),
    "projected": lambda m, **o: Amortised(m, context="global_shared_heads", context_dim=CONTEXT, dim=4, **o),
}


def filled(guide: Any) -> Any:
    with torch.no_grad():
        for null in guide.reader.null.values():
            null.normal_()
    return guide


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ends_of_a_gate_are_the_missing_and_the_whole_context(family: str) -> None:
    guide, batch = filled(FAMILIES[family](core_model())), token_batch()
    whole, missing = moments(guide, batch), moments(guide, batch.without("audio"))
    guide.gate["audio"] = 0.0
    assert_same(moments(guide, batch), missing)
    guide.gate["audio"] = 1.0
    found = moments(guide, batch)
    assert all(torch.equal(x, y) for name in whole for x, y in zip(found[name], whole[name], strict=True))
    guide.gate["audio"] = 0.5
    half, first = moments(guide, batch), next(iter(whole))
    assert not torch.allclose(half[first][0][1], whole[first][0][1])
    assert not torch.allclose(half[first][0][1], missing[first][0][1])
    torch.testing.assert_close(half[first][0][2], missing[first][0][2])  # row 2 has no audio: any gate is the same


def test_between_the_ends_the_network_reads_the_point_between_null_and_context() -> None:
    guide, batch = filled(FAMILIES["pooled"](core_model(), gate=0.25)), token_batch()
    mixed = Frames(batch.context["audio"].mean()[:, None], torch.ones(5, 1, dtype=torch.bool))
    plain = filled(FAMILIES["pooled"](guide.model))
    plain.load_state_dict(guide.state_dict())
    with torch.no_grad():
        for key, null in plain.reader.null.items():  # W (g ā) + (1 − g) n, by moving W and the mean frame
            null.copy_(guide.reader.null[key])
    site = guide.model.sites[0]
    key = site.name.replace(".", "-")
    c = 0.25 * guide.reader.value[key](mixed.mean()) + 0.75 * guide.reader.null[key]
    c = torch.where(batch.context["audio"].present[:, None], c, guide.reader.null[key])
    with torch.no_grad():
        guide(batch)
        node: Any = guide.trace.nodes[site.name]
        z = node["infer"]["site"].z
        u = torch.cat([z, c[:, None].expand(*z.shape[:-1], 4)], -1)
        expected = guide.heads[key](u, guide.model.prior.of(site))
    torch.testing.assert_close(moments(guide, batch)[site.name][0], expected.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [FusionLoRA, FusionCore])
def test_the_gate_of_the_head_has_the_same_ends(kind: Any, tmp_path: Path) -> None:
    from bayes_adapters.guides import Delta

    model = fill_B(kind(bert(), Bernoulli(), context_dim=CONTEXT, rank=2, fusion_width=4))
    with torch.no_grad():
        model.null.normal_()
    guide, batch = Delta(model), token_batch()
    whole, missing = logits(guide, batch), logits(guide, batch.without("audio"))
    for gate, expected in ((0.0, missing), (1.0, whole)):
        model.gate["audio"] = gate
        torch.testing.assert_close(logits(guide, batch), expected)
    model.gate["audio"] = 0.5
    half = logits(guide, batch)
    assert not torch.allclose(half[1], whole[1])
    save(tmp_path / "saved", model, guide)
    again = load(tmp_path / "saved", bert())
    assert again[0].gate == {"audio": 0.5}
    torch.testing.assert_close(logits(again[1], batch), half)


def test_a_gate_is_saved_and_one_that_is_open_leaves_no_trace(tmp_path: Path) -> None:
    guide = FAMILIES["cross"](core_model())
    assert "gate" not in guide.config()
    guide.gate["audio"] = 0.25
    save(tmp_path / "saved", guide.model, guide)
    model, again = load(tmp_path / "saved", bert())
    assert again.gate == {"audio": 0.25}
    batch = token_batch()
    torch.testing.assert_close(predict(model, again, batch).probs, predict(guide.model, guide, batch).probs)


def task(size: int, seed: int, informative: bool) -> Batch:
    """Two words of six decide half of the label; 16 numbers a recording, of which one decides the rest, or none."""
    rng = torch.Generator().manual_seed(seed)
    ids, heard = torch.randint(2, 20, (size, 6), generator=rng), torch.randn(size, generator=rng)
    logit = 1.5 * ((ids < 6).float().sum(1) - 1.33) + 2.5 * heard * informative
    targets = (torch.rand(size, generator=rng) < logit.sigmoid()).float()
    values = torch.randn(size, 1, 16, generator=rng) + 0.5 * torch.randn(size, 3, 16, generator=rng)
    if informative:
        values[..., 0] = heard[:, None]
    return Batch({"input_ids": ids}, targets, {"audio": Frames(values, torch.ones(size, 3, dtype=torch.bool))})


def trained(informative: bool, dropout: float, reads: bool = True) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = core_model(backbone=bert(layers=1), targets=["value"])
    guide = CrossAttention(model, context_dim=16, dim=8) if reads else Contextual(model)
    data = transformed(batches(task(200, 1, informative), 100), ModalityDropout("audio", dropout))
    fit(
        model, guide, data, epochs=20, kl_weight=1e-4, kl_mode="per_token_mean", progress=False,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    )  # fmt: skip
    return model, guide


def test_an_uninformative_context_costs_nothing_behind_a_gate_and_an_informative_one_opens_it() -> None:
    found = {}
    for informative in (False, True):
        held, test = task(100, 2, informative), task(1000, 3, informative)

        def nll(model: Any, guide: Any, test: Batch = test) -> float:
            return -float(predict(model, guide, test, num_samples=4).log_density.mean())  # type: ignore[union-attr]

        text = nll(*trained(informative, 0.0, reads=False))
        plain = text if informative else nll(*trained(informative, 0.0))
        model, guide = trained(informative, 0.5)
        choice = choose_gate(model, guide, held, gates=(0.25, 0.5, 1.0), num_samples=4)
        assert guide.gate["audio"] == choice.gate
        assert choice.nll == min(choice.tried.values()) or choice.gate == 0.0
        found[informative] = choice.gate, nll(model, guide) - text, plain - text
    gate, gated, plain = found[False]
    assert gate == 0.0
    assert gated < 0.03, "no worse than text alone"
    assert plain > 0.10, "and without a gate it is worse"
    gate, gated, _ = found[True]
    assert gate > 0.0
    assert gated < -0.03, "better than text alone"


def test_the_cost_is_what_all_examples_together_must_gain() -> None:
    model = core_model()
    guide, batch = filled(FAMILIES["cross"](model)), token_batch(40)
    heard, missing = (predict(model, guide, b).probs for b in (batch, batch.without("audio")))
    batch = Batch(batch.inputs, (heard > missing).float(), batch.context)  # the context tells something
    free = choose_gate(model, guide, batch, cost=0.0)
    gain = 40 * (free.closed - min(free.tried.values()))
    assert gain > 0
    assert free.gate > 0.0
    assert choose_gate(model, guide, [batch[:15], batch[15:]], cost=gain * 0.99).gate == free.gate
    assert choose_gate(model, guide, batch, cost=gain * 1.01).gate == 0.0


def test_refusals() -> None:
    model, batch = core_model(), token_batch()
    guide = FAMILIES["cross"](model)
    with refuses(ConfigError, "CrossAttention", "Contextual"):
        choose_gate(model, Contextual(model), batch)
    fused = core_model()
    fused.gate = torch.nn.ParameterList([torch.zeros(1, 2)])  # a learned gate of another kind, as Wander has
    with refuses(ConfigError, "Contextual", "StochasticCore"):
        choose_gate(fused, Contextual(fused), batch)
    with refuses(ConfigError, "'audoi'", "audio"):
        choose_gate(model, guide, batch, modality="audoi")
    with refuses(ConfigError, "null_context=False"):
        choose_gate(model, FAMILIES["cross"](model, null_context=False), batch)
    with refuses(ConfigError, "null_context=False", 0.5):
        FAMILIES["cross"](model, null_context=False, gate=0.5)
    for wrong in (-0.5, 1.5):
        with refuses(ConfigError, wrong):
            choose_gate(model, guide, batch, gates=[wrong])
        with refuses(ConfigError, wrong, "gate"):
            FAMILIES["pooled"](model, gate=wrong)
    with refuses(ConfigError, -1.0, "cost"):
        choose_gate(model, guide, batch, cost=-1.0)
    with unchecked(), refuses(ConfigError, "gates", 0.5):
        choose_gate(model, guide, batch, gates=0.5)
    for silent in (batch.without("audio"), batch.masked("audio")):
        with refuses(DataError, "'audio'", "every gate"):
            choose_gate(model, guide, silent)
    guide.gate["audio"] = 2.0
    with refuses(ConfigError, "gate", 2.0):
        guide.config()  # which save() writes, and load() would refuse
    guide.gate["audio"] = 0.75
    with refuses(DataError, "targets"):
        choose_gate(model, guide, batch.without_targets())
    assert guide.gate == {"audio": 0.75}, "as it was"
    with refuses(ConfigError, "gate", "none"):
        Amortised(model, context="none", gate=0.5)
