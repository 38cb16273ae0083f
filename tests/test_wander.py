"""Wander as a Pyro model: frozen encoders, fusion after the last or every layer, factors that may be random."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes_adapters import ELBO, Batch, Bernoulli, Gaussian, load, predict, save
from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, Delta, MCDropout, MeanField
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.modalities.blocks import Blocks, describe_blocks
from bayes_adapters.models import ConcatLoRA, Wander
from bayes_adapters.models.multiplicative.factors import FusionFactors, ModalityFactors
from bayes_adapters.models.multiplicative.fusion import cp_fusion_pooled
from bayes_adapters.priors import zero_normal
from bayes_adapters.surgery.folding import fold
from tests.helpers import WIDTH, bert, logits, vit, whisper
from tests.refusals import refuses
from tests.test_recomputation import gradients, same, switch_on
from tests.text_and_audio import batch, encoders

LENGTHS = {"text": 5, "audio": 6}


def wander(backbone: nn.ModuleDict | None = None, *, opened: bool = True, **options: Any) -> Wander:
    settings = {"num_data": 50, "lengths": LENGTHS, "fusion_rank": 3, "terms": 2} | options
    torch.manual_seed(1)
    model = Wander(backbone or encoders(), Bernoulli(), **settings)
    if opened:
        with torch.no_grad():
            for gate in model.gate:
                gate.fill_(0.5)
    return model


def test_sites_and_the_standard_deviation_at_which_they_start() -> None:
    model = wander(fusion_rank=8, terms=4)
    shapes = {site.name: site.shape for site in model.sites}
    assert shapes == {
        "factor.feature.text": (1, 4, 8, WIDTH),
        "factor.token.text": (1, 4, 5, 8),
        "factor.feature.audio": (1, 4, 8, WIDTH),
        "factor.token.audio": (1, 4, 6, 8),
    }
    scales = {s.name: model.prior.of(s).stddev.unique().item() for s in model.sites}
    assert scales["factor.feature.text"] == pytest.approx(1 / math.sqrt(32))
    assert scales["factor.token.audio"] == pytest.approx(1 / math.sqrt(24))
    guide = Delta(model)
    assert guide.loc["factor-feature-text"].std().item() == pytest.approx(1 / math.sqrt(32), rel=0.15)


def test_the_fusion_is_that_of_the_pure_function() -> None:
    model, data = wander(), batch()
    guide = Delta(model)
    with torch.no_grad():
        text = model.backbone["text"](data.inputs["text.input_ids"], data.inputs["text.attention_mask"])
        audio = model.backbone["audio"](data.inputs["audio.input_features"])
        frames = {
            "text": Frames(text.last_hidden_state, data.inputs["text.attention_mask"].bool()),
            "audio": Frames(audio.last_hidden_state, torch.ones(4, 10, dtype=torch.bool)),
        }
        factors = {
            name: ModalityFactors(
                model.down[name],
                model.bias[name],
                guide.loc[f"factor-feature-{name}"][0],
                guide.loc[f"factor-token-{name}"][0],
                model.absent[name],
            )
            for name in frames
        }
        fused = cp_fusion_pooled(frames, FusionFactors(factors, model.gate[0]), model.rule).values
        expected = model.head(fused.mean(1))[:, 0]
    torch.testing.assert_close(logits(guide, data), expected, rtol=1e-5, atol=1e-6)


def test_at_the_start_every_layer_is_the_frozen_encoders() -> None:
    nets, data = encoders(), batch()
    plain = ConcatLoRA(nets, Bernoulli(), targets=None)
    model = wander(nets, opened=False, every_layer=True)
    plain.head.load_state_dict(model.head.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(logits(Delta(model), data), plain(data)[:, 0], rtol=1e-5, atol=1e-6)
        before = logits(Delta(model), data)
        for gate in model.gate:
            gate.fill_(0.5)
    assert not torch.allclose(before, logits(Delta(model), data))


@pytest.mark.parametrize("every_layer", [False, True])
def test_frozen_stays_frozen_and_every_tensor_learns_from_the_second_step(every_layer: bool) -> None:
    model, data = wander(opened=False, every_layer=every_layer), batch()
    frozen = {n: p.clone() for n, p in model.backbone.named_parameters()}
    guide = Delta(model)
    elbo = ELBO(model, guide, kl_weight=0.0)
    parameters = {**model.trainable_parameters(), **{f"guide.{n}": p for n, p in guide.named_parameters()}}
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.5)
    for step in range(2):
        optimizer.zero_grad()
        elbo(data).backward()
        moving = {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        if step == 0:
            assert not any(n.startswith(("guide.", "down", "bias")) for n in moving), "the gate is closed"
        optimizer.step()
    assert {n for n in parameters if n not in moving and not n.startswith(("absent", "null"))} == set()
    assert all(torch.equal(p, frozen[n]) for n, p in model.backbone.named_parameters())


@pytest.mark.parametrize("every_layer", [False, True])
@pytest.mark.parametrize("cp", ["product_of_sums", "sum_of_products"])
@pytest.mark.parametrize("guide_class", [Delta, MeanField])
def test_trains_predicts_and_survives_a_file(every_layer: bool, cp: str, guide_class: Any, tmp_path: Path) -> None:
    model, data = wander(every_layer=every_layer, cp=cp), batch()
    guide = guide_class(model)
    elbo = ELBO(model, guide, kl_weight=1e-3)
    optimizer = torch.optim.Adam([*model.trainable_parameters().values(), *guide.parameters()], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss = elbo(data)
        loss.backward()
        optimizer.step()
        assert math.isfinite(loss.item())
    first = predict(model, guide, data.without_targets(), num_samples=3, return_samples=True)
    assert bool((first.epistemic > 1e-9).any()) == (guide_class is MeanField)
    cut = predict(model, guide, [data[:1], data[1:]], num_samples=3, chunk_size=2, return_samples=True)
    torch.testing.assert_close(first.samples, cut.samples, rtol=1e-4, atol=1e-5)
    save(tmp_path / "a", model, guide)
    again = predict(*load(tmp_path / "a", encoders()), data.without_targets(), num_samples=3, return_samples=True)
    torch.testing.assert_close(again.samples, first.samples, rtol=1e-6, atol=1e-7)


def test_kl_counts_once_per_data_set() -> None:
    model = wander(prior={"*": torch_normal(0.2)})
    guide = MeanField(model, init_scale=0.25)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.fill_(0.1)
    entries = sum(math.prod(site.shape) for site in model.sites)
    assert ELBO(model, guide).terms(batch()).kl.item() == pytest.approx(0.18310645 * entries / 50, rel=1e-4)


def torch_normal(scale: float) -> Any:
    import pyro.distributions as dist

    return dist.Normal(torch.tensor(0.0), torch.tensor(scale))


@pytest.mark.parametrize("every_layer", [False, True])
def test_padding_and_missing_modalities(every_layer: bool) -> None:
    model, data = wander(every_layer=every_layer), batch()
    with torch.no_grad():
        for null in [*model.absent.values(), *model.null.values()]:
            null.normal_()
    guide = Delta(model)
    longer = dict(data.inputs)
    longer["text.input_ids"] = torch.cat([data.inputs["text.input_ids"], torch.full((4, 3), 17)], 1)
    longer["text.attention_mask"] = torch.cat([data.inputs["text.attention_mask"], torch.zeros(4, 3).long()], 1)
    torch.testing.assert_close(logits(guide, Batch(longer)), logits(guide, data), rtol=1e-4, atol=1e-5)
    text = Batch({k: v for k, v in data.inputs.items() if k.startswith("text.")})
    flagged = Batch(data.inputs | {"audio.present": torch.zeros(4)})
    torch.testing.assert_close(logits(guide, text), logits(guide, flagged), rtol=1e-5, atol=1e-6)
    some = logits(guide, Batch(data.inputs | {"audio.present": torch.tensor([1, 0, 1, 1])}))
    torch.testing.assert_close(some[1], logits(guide, text)[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some[[0, 2, 3]], logits(guide, data)[[0, 2, 3]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits(guide, text), logits(guide, data))


def test_widths_that_differ_are_projected() -> None:
    nets = nn.ModuleDict({"text": bert(), "audio": whisper(), "image": vit()})
    model = wander(nets, width=8, lengths=LENGTHS | {"image": 4})
    pixels = {"image.pixel_values": torch.randn(4, 3, 16, 16)}
    assert torch.isfinite(logits(Delta(model), batch(**pixels))).all()
    assert model.sites[0].event[-1] == 8


@pytest.mark.parametrize("guide_class", [Delta, MeanField])
def test_folding_keeps_the_function_and_drops_parameters(guide_class: Any) -> None:
    model, data = wander(cp="product_of_sums", terms=4), batch()
    guide = guide_class(model)
    guide.posterior_temperature = 0.5  # the folded one's draws, below, have it too
    small, folded = fold(model, guide)
    with PosteriorMean():
        torch.testing.assert_close(logits(folded, data), logits(guide, data), rtol=1e-4, atol=1e-5)
    entries = 3 * (2 * 3 * WIDTH + 3 * (5 + 6))
    saved = sum(p.numel() for p in guide.parameters()) - sum(p.numel() for p in folded.parameters())
    assert saved == entries * (2 if guide_class is MeanField else 1)
    if guide_class is MeanField:
        spread = predict(model, guide, data, num_samples=400, return_samples=True).samples
        again = predict(small, folded, data, num_samples=400, return_samples=True).samples
        assert spread is not None
        assert again is not None
        torch.testing.assert_close(spread.std(0), again.std(0), rtol=0.25, atol=1e-3)


@pytest.mark.parametrize(
    ("prior", "guide_class", "options"),
    [(dist.HalfNormal(1.0), Delta, {}), (dist.Normal(2.0, 0.1), MeanField, {"positive_mean": True})],
)
def test_folding_sums_means_and_not_what_is_trained_in_their_place(
    prior: Any, guide_class: Any, options: dict[str, Any]
) -> None:
    model, data = wander(cp="product_of_sums", terms=4, prior=prior), batch()
    guide = guide_class(model, **options)
    before = torch.get_rng_state()
    _, folded = fold(model, guide)
    assert torch.equal(torch.get_rng_state(), before)
    with PosteriorMean():
        torch.testing.assert_close(logits(folded, data), logits(guide, data), rtol=1e-4, atol=1e-5)


def test_what_folding_returns_is_trained_apart_from_the_model() -> None:
    model = Wander(encoders(), Gaussian(), num_data=4, lengths=LENGTHS, terms=2, cp="product_of_sums")
    small, _ = fold(model, Delta(model))
    shared = {id(p) for p in model.trainable_parameters().values()} & {id(p) for p in small.parameters()}
    assert not shared


def test_folding_takes_the_models_own_guide() -> None:
    with refuses(ConfigError, "Delta", "Wander"):
        fold(wander(cp="product_of_sums"), Delta(wander(cp="product_of_sums")))


@pytest.mark.parametrize(
    ("build", "kind", "facts"),
    [
        (lambda: wander(nn.ModuleDict({"text": bert()})), ConfigError, ("Wander", 2, "nn.ModuleDict")),
        (lambda: wander(lengths={"text": 3}), ConfigError, ("lengths", ["audio", "text"], ["text"])),
        (lambda: wander(lengths={"text": 3, "audio": 0}), ConfigError, ("lengths['audio']", 1, 0)),
        (lambda: wander(terms=0), ConfigError, ("terms", 1, 0)),
        (lambda: wander(width=0), ConfigError, ("width", 1, 0)),
        (lambda: wander(encoders(2, 1), every_layer=True), ConfigError, ([1, 2],)),
        (lambda: wander(every_layer=True, width=8), ConfigError, ("width=",)),
        (lambda: wander(cp="sum"), ConfigError, ("cp", "'sum'", "sum_of_products")),
        (
            lambda: Contextual(wander()),
            ConfigError,
            ("Contextual", "'factor.feature.text'", "global", "sequence, token"),
        ),
        (lambda: MCDropout(wander()), ConfigError, ("MCDropout", "factor", "mask")),
        (lambda: fold(model := wander(), Delta(model)), ConfigError, ("cp='sum_of_products'", "cp='product_of_sums'")),
        (
            lambda: wander()(Batch({"input_ids": torch.ones(2, 3).long()})),
            DataError,
            ("'input_ids'", "text.input_ids", "text, audio"),
        ),
    ],
)
def test_errors(build: Any, kind: type[Exception], facts: tuple[object, ...]) -> None:
    with refuses(kind, *facts):
        build()


@pytest.mark.parametrize(
    "options",
    [
        {"prior": {"factor.feature.video": zero_normal()}},
        {"lengths": {"text": 3, "audio": 0}},
        {"every_layer": True, "width": 8},
        {"terms": 0, "targets": ["query", "q_proj"]},
        {"targets": ["query", "q_proj"], "rank": 0},
    ],
)
def test_a_model_that_cannot_be_built_leaves_the_encoders_alone(options: dict[str, Any]) -> None:
    nets, data = encoders(), batch().inputs["text.input_ids"]
    nets["text"].embeddings.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in nets.named_parameters()}
    modules = [(path, type(module)) for path, module in nets.named_modules()]
    with torch.no_grad():
        before = nets["text"](data).last_hidden_state
    with pytest.raises(ConfigError):
        wander(nets, **options)
    assert [(path, type(module)) for path, module in nets.named_modules()] == modules
    assert {name: parameter.requires_grad for name, parameter in nets.named_parameters()} == flags
    assert sorted(set(flags.values())) == [False, True]
    with torch.no_grad():
        assert torch.equal(nets["text"](data).last_hidden_state, before)


def test_adapters_beside_fusion_after_every_layer_and_given_blocks_survive_a_file(tmp_path: Path) -> None:
    nets, data = encoders(), batch()
    given = {name: Blocks((describe_blocks(net)[0],)) for name, net in nets.items()}
    model = wander(nets, every_layer=True, blocks=given, targets=["query", "q_proj"])
    assert len(model.layers) == 4
    assert list(model.depths) == [0], "the one block that was given, not both"
    guide = Delta(model)
    before = predict(model, guide, data, num_samples=1).probs
    save(tmp_path / "adapter", model, guide)
    again, other = load(tmp_path / "adapter", encoders())
    assert torch.equal(predict(again, other, data, num_samples=1).probs, before)
    with refuses(ConfigError, "blocks=", "every_layer=True"):
        wander(blocks=given)
    with refuses(ConfigError, "'text'"):
        wander(every_layer=True, blocks=given | {"text": []})


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("alone", [None, "audio"])
@pytest.mark.parametrize("adapters", [{}, {"targets": ["query", "value", "q_proj"], "rank": 2}])
def test_checkpointing_changes_no_gradient_of_fusion_after_every_layer(
    adapters: dict[str, Any], alone: str | None
) -> None:
    model = wander(encoders(2, 2), every_layer=True, **adapters)
    elbo = ELBO(model, MeanField(model), num_particles=2).train()
    data = [batch(), batch(2)]
    expected = gradients(elbo, data)
    switch_on(model.backbone if alone is None else model.backbone.get_submodule(alone))
    found = gradients(elbo, data)
    same(found, expected)
    assert found["saved"] < expected["saved"]
