"""CoLA: two paths a layer, encoders in lock-step, and the hypernetwork that decides the second path's core."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from bayes_adapters import (
    ELBO,
    Batch,
    Bernoulli,
    Categorical,
    adapted_layers,
    load,
    predict,
    remove,
    save,
)
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.forward_pass import ForwardPass, running
from bayes_adapters.guides import Contextual, Delta, Hypernetwork, MeanField
from bayes_adapters.guides.hypernetwork import Phi, _Net, kron_shapes
from bayes_adapters.inter_path import InterPath
from bayes_adapters.models import CoLA, LoRA
from bayes_adapters.priors import Prior, zero_normal
from bayes_adapters.sites import Granularity, Part, Site
from tests.helpers import WIDTH, bert, vit, whisper

FRAMES = 10
BLOCK = 6


def encoders(text: int = 2, audio: int = 2) -> nn.ModuleDict:
    return nn.ModuleDict({"text": bert(text), "audio": whisper(audio)})


def batch(size: int = 4, seed: int = 0, **more: Tensor) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, 7, dtype=torch.long)
    mask[1, 3:] = 0
    inputs = {
        "text.input_ids": torch.randint(0, 40, (size, 7), generator=rng),
        "text.attention_mask": mask,
        "audio.input_features": torch.randn(size, 8, 2 * FRAMES, generator=rng),
    }
    return Batch(inputs | more, torch.randint(0, 2, (size,), generator=rng).float())


def cola(backbone: nn.ModuleDict | None = None, fill: bool = True, **options: Any) -> CoLA:
    model = CoLA(backbone or encoders(), Bernoulli(), **({"rank": 3, "alpha": 1.5} | options))
    if fill:
        torch.manual_seed(5)
        with torch.no_grad():
            for layer in adapted_layers(model.backbone).values():
                for up in {id(p): p for p in [layer.lora_B, *(path.lora_B for path in layer.inter.values())]}.values():
                    up.normal_(0.0, 0.3)
    return model


def logits(model: CoLA, guide: Any, data: Batch) -> Tensor:
    with torch.no_grad():
        guide(data)
    return guide.trace.nodes["obs"]["fn"].logits


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())


# counts


def _meta_bert(layers: int = 12) -> nn.Module:
    config = BertConfig(vocab_size=10, hidden_size=768, num_hidden_layers=layers, intermediate_size=3072)
    with torch.device("meta"):
        return BertModel(config, add_pooling_layer=False)


def test_parameters_of_one_linear() -> None:
    layer = nn.Linear(768, 768)
    site = Site("cross.l", Part.CROSS, ("l",), (16, 16), Granularity.SEQUENCE, "other")
    path = InterPath(site, nn.Parameter(torch.zeros(16, 768)), nn.Parameter(torch.zeros(768, 16)), 0.5, "slot")
    lora = 16 * 768 * 2
    net = _Net(768, 48, 16, Phi.DENSE, None)
    assert count(net) == 50_064
    assert count(path, net) + lora == 99_217
    assert not count(layer.requires_grad_(False))


def test_parameters_of_the_papers_models() -> None:
    """24 blocks of width 768 and the head of AVE, 1536 → 512 → 29: 18,628,013 in all, as published (18.6 M)."""
    small = {"text": _meta_bert(1), "audio": _meta_bert(1)}  # blocks are looked at by running them: not on meta
    names = "encoder.layer.{i}."
    roles = {
        "path": names[:-1],
        "query": names + "attention.self.query",
        "key": names + "attention.self.key",
        "value": names + "attention.self.value",
        "output": names + "attention.output.dense",
        "fc1": names + "intermediate.dense",
        "fc2": names + "output.dense",
        "residual": names + "intermediate.dense",
    }

    def build(layers: int, head_width: int | None) -> tuple[CoLA, Hypernetwork]:
        nets = nn.ModuleDict({name: _meta_bert(layers) for name in small})
        blocks = {name: [{k: v.format(i=i) for k, v in roles.items()} for i in range(layers)] for name in small}
        model = CoLA(nets, Categorical(29), blocks=blocks, head_width=head_width, rank=16, alpha=8)
        return model, Hypernetwork(model)

    model, guide = build(12, 512)
    null = count(model.null, model.null_descriptor)
    adapters = count(model.backbone) + count(guide)
    assert adapters == 17_826_192
    assert count(model.head) == 801_821
    assert count(model, guide) - null == 18_628_013
    plain = LoRA(nn.ModuleDict({"text": _meta_bert(12)})["text"], Categorical(2), targets="all-linear", rank=16)
    assert count(plain.backbone) == 12 * 221_184


@pytest.mark.parametrize(("rank", "rows"), [(16, 32), (32, 80)])
def test_kron_needs_few_outputs(rank: int, rows: int) -> None:
    (m, p), (n, q) = kron_shapes(rank)
    assert m * n == p * q == rank
    assert m * p + n * q == rows


# the function


def test_at_the_start_the_encoders_are_the_frozen_ones_and_remove_restores_them() -> None:
    nets, data = encoders(), batch()
    text = nets["text"](input_ids=data.inputs["text.input_ids"], attention_mask=data.inputs["text.attention_mask"])
    model = cola(nets, fill=False)
    guide = Hypernetwork(model, gamma=4)
    found = logits(model, guide, data)
    with model.adapters_disabled():
        assert torch.equal(found, logits(model, guide, data))
    remove(nets)
    again = nets["text"](input_ids=data.inputs["text.input_ids"], attention_mask=data.inputs["text.attention_mask"])
    assert torch.equal(text.last_hidden_state, again.last_hidden_state)


def test_the_inter_path_by_hand_and_its_windows() -> None:
    site = Site("cross.l", Part.CROSS, ("l",), (2, 2), Granularity.SEQUENCE, "audio")
    path = InterPath(site, nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2)), 0.3, "slot")
    ids = torch.zeros(3, 1, dtype=torch.long)
    prior = Prior(zero_normal(1.0), [site])
    x, descriptor = torch.randn(6, 4, 5), torch.randn(3, 7)
    scratch = {"slot": descriptor}
    state = ForwardPass(Batch({"text.input_ids": ids}), (), prior, {}, 1, scratch)
    import pyro

    with running(state), pyro.poutine.trace() as tracer:
        found = path(x)
    core = tracer.trace.nodes["cross.l"]["value"][:, 0]
    for row in range(6):
        expected = 0.3 * x[row] @ path.lora_A.T @ core[row // 2].T @ path.lora_B.T
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)
    with running(ForwardPass(state.batch, (), prior, {}, 1, dict(scratch))), pytest.raises(DataError, match="5 rows"):
        path(x[:5])


def _streams(model: CoLA, data: Batch) -> dict[str, Tensor]:
    """The tensors that each layer's path saw, by the site's name."""
    guide = Delta(model)
    with torch.no_grad():
        guide(data)
    return {s.name: guide.trace.nodes[s.name]["infer"]["site"].z[:, 0] for s in model.sites}


@pytest.mark.parametrize(("schedule", "groups"), [("uniform", (6,)), ("module", (4, 2)), ("progressive", (3, 1, 2))])
def test_schedules_refresh_the_descriptor_where_they_say(schedule: str, groups: tuple[int, ...]) -> None:
    model, data = cola(schedule=schedule), batch()
    seen = _streams(model, data)
    for name in ("text", "audio"):
        for block in model.blocks[name]:
            values = [seen[f"cross.{name}.{path}"] for path in block.linears]
            distinct = [0]
            for a, b in itertools.pairwise(values):
                distinct.append(distinct[-1] + (not torch.equal(a, b)))
            assert tuple(distinct.count(k) for k in sorted(set(distinct))) == groups


def test_descriptors_are_the_pooled_streams_of_the_other_encoder() -> None:
    """At the first block nothing has been exchanged yet, so the streams are those of the frozen embeddings."""
    nets, data = encoders(), batch()
    mask = data.inputs["text.attention_mask"]
    with torch.no_grad():
        words = nets["text"].embeddings(input_ids=data.inputs["text.input_ids"])
        sounds = nets["audio"](data.inputs["audio.input_features"], output_hidden_states=True).hidden_states[0]
    for kind, text in {
        "masked_mean": (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
        "mean": words.mean(1),
        "cls": words[:, 0],
    }.items():
        model = cola(nets, streams={"text": kind, "audio": "mean"})
        seen = _streams(model, data)
        first = {name: f"cross.{name}.{model.blocks[name][0].query}" for name in nets}
        torch.testing.assert_close(seen[first["audio"]], text, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen[first["text"]], sounds.mean(1), rtol=1e-5, atol=1e-6)
        remove(nets)


def test_padding_counts_nowhere() -> None:
    model, data = cola(), batch()
    guide = Hypernetwork(model, gamma=4)
    longer = dict(data.inputs)
    longer["text.input_ids"] = torch.cat([data.inputs["text.input_ids"], torch.full((4, 3), 17)], 1)
    longer["text.attention_mask"] = torch.cat([data.inputs["text.attention_mask"], torch.zeros(4, 3).long()], 1)
    torch.testing.assert_close(
        logits(model, guide, Batch(longer)), logits(model, guide, data.without_targets()), rtol=1e-4, atol=1e-5
    )


def test_both_encoders_depend_on_the_other() -> None:
    model, data = cola(), batch()
    guide, other = Hypernetwork(model, gamma=4), batch(seed=9)
    seen = _streams(model, data)
    last = {name: f"cross.{name}.{model.blocks[name][1].fc1}" for name in ("text", "audio")}
    swapped = data.inputs | {"audio.input_features": other.inputs["audio.input_features"]}
    with torch.no_grad():
        found = _streams(model, Batch(swapped))
    assert not torch.allclose(seen[last["text"]], found[last["text"]])
    assert not torch.allclose(seen[last["audio"]], found[last["audio"]]), "through the text encoder and back"
    assert not torch.allclose(logits(model, guide, data), logits(model, guide, Batch(swapped)))


# training


def test_every_tensor_gets_gradient_from_the_second_step() -> None:
    model, data = cola(fill=False), batch()
    guide = Hypernetwork(model, gamma=4)
    elbo = ELBO(model, guide, kl_weight=0.0)
    parameters = {**model.trainable_parameters(), **{f"guide.{n}": p for n, p in guide.named_parameters()}}
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.1)
    elbo(data).backward()
    moving = {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n for n in moving if "lora_" in n} == {n for n in parameters if "lora_B" in n}, "only B at the start"
    optimizer.step()
    optimizer.zero_grad()
    elbo(data).backward()
    # the output projection's descriptor of the last block, say, matters to the last layers only
    still = {n for n, p in parameters.items() if p.grad is None or p.grad.abs().max() == 0}
    assert {n for n in still if "null" not in n} == set()


def test_phi_at_the_start_is_normalised_dense_and_spans_few_dimensions() -> None:
    net = _Net(768, 48, 16, Phi.DENSE, None)
    with torch.no_grad():
        core, _ = net(torch.randn(400, 768))
    assert core.mean((-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(core.std((-2, -1), correction=0), torch.ones(400), rtol=1e-3, atol=0)
    assert torch.linalg.matrix_rank(core.flatten(1)) <= 48 + 2


def test_the_hypernetwork_by_hand() -> None:
    model = cola()
    guide = Hypernetwork(model, gamma=4, phi="dense")
    key, net = next(iter(guide.nets.items()))
    x = torch.randn(5, WIDTH)
    z = F.gelu(x @ net.down.weight.T + net.down.bias)
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    u = (z @ net.up.weight.T + net.up.bias).reshape(5, 3, 3)
    expected = (u - u.mean((1, 2), keepdim=True)) / (u.var((1, 2), correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(net(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert key.startswith("cross-text-")


GUIDES = {
    "dense": lambda m: Hypernetwork(m, gamma=4),
    "kron": lambda m: Hypernetwork(m, gamma=4, phi="kron"),
    "static": lambda m: Hypernetwork(m, gamma=4, phi="static"),
    "identity": lambda m: Hypernetwork(m, gamma=4, phi="identity"),
    "bayesian": lambda m: Hypernetwork(m, gamma=4, scale="softplus"),
    "bayesian static": lambda m: Hypernetwork(m, gamma=4, phi="static", scale="softplus"),
    "mean field": MeanField,
    "delta": Delta,
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("share", ["none", "A", "B", "all"])
def test_any_guide_trains_predicts_and_survives_a_file(name: str, share: str, tmp_path: Path) -> None:
    model, data = cola(share=share, rank=4), batch()
    guide = GUIDES[name](model)
    elbo = ELBO(model, guide, kl_weight=1e-3)
    optimizer = torch.optim.Adam([*model.trainable_parameters().values(), *guide.parameters()], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = elbo(data)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(x) for x in losses)
    first = predict(model, guide, data.without_targets(), num_samples=3, return_samples=True)
    stochastic = "bayesian" in name or name == "mean field"
    assert bool((first.epistemic > 1e-9).any()) == stochastic
    save(tmp_path / "a", model, guide)
    nets = encoders()
    loaded = load(tmp_path / "a", nets)
    again = predict(*loaded, data.without_targets(), num_samples=3, return_samples=True)
    assert first.samples is not None
    torch.testing.assert_close(again.samples, first.samples, rtol=1e-6, atol=1e-7)


def test_draws_do_not_depend_on_how_the_data_is_cut() -> None:
    model, data = cola(), batch()
    guide = Hypernetwork(model, gamma=4, scale="softplus")
    whole = predict(model, guide, data, num_samples=4, return_samples=True).samples
    parts = predict(model, guide, [data[:1], data[1:]], num_samples=4, chunk_size=3, return_samples=True).samples
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_shared_matrices_are_one_parameter() -> None:
    layer = next(iter(adapted_layers(cola(share="A").backbone).values()))
    assert layer.inter["audio"].lora_A is layer.lora_A
    assert layer.inter["audio"].lora_B is not layer.lora_B
    both = next(iter(adapted_layers(cola(share="all").backbone).values()))
    assert both.inter["audio"].lora_A is both.lora_A
    assert both.inter["audio"].lora_B is both.lora_B


# depths, more encoders, missing encoders


def test_unequal_depths_are_spread_and_the_rest_gets_one_path() -> None:
    model = cola(encoders(6, 4), depths="spread")
    paired = {name: sorted({own for n, _, own, _ in model.pairs if n == name}) for name in ("text", "audio")}
    assert paired == {"text": [0, 2, 3, 5], "audio": [0, 1, 2, 3]}
    layers = adapted_layers(model.backbone)
    assert len(layers) == 10 * BLOCK
    assert sum(bool(layer.inter) for layer in layers.values()) == 8 * BLOCK
    assert torch.isfinite(logits(model, Hypernetwork(model, gamma=4), batch())).all()


def test_three_encoders_have_a_path_from_each_partner() -> None:
    nets = nn.ModuleDict({"text": bert(2), "audio": whisper(2), "image": vit(2)})
    model = cola(nets)
    assert len(model.sites) == 3 * 2 * BLOCK * 2
    assert all(set(layer.inter) == set(nets) - {p.split(".")[0]} for p, layer in adapted_layers(nets).items())
    pixels = {"image.pixel_values": torch.randn(4, 3, 16, 16)}
    guide = Hypernetwork(model, gamma=4)
    whole = logits(model, guide, batch(**pixels))
    other = logits(model, guide, batch(**{"image.pixel_values": torch.randn(4, 3, 16, 16)}))
    assert not torch.allclose(whole, other)
    assert torch.isfinite(logits(model, guide, batch())).all(), "a whole encoder may be missing"


def test_missing_for_the_batch_is_missing_for_every_example() -> None:
    model, data = cola(), batch()
    with torch.no_grad():
        for null in [*model.null.values(), *model.null_descriptor.values()]:
            null.normal_()
    guide = Hypernetwork(model, gamma=4)
    text = {k: v for k, v in data.inputs.items() if k.startswith("text.")}
    absent = logits(model, guide, Batch(text))
    flagged = logits(model, guide, Batch(data.inputs | {"audio.present": torch.zeros(4)}))
    torch.testing.assert_close(absent, flagged, rtol=1e-5, atol=1e-6)
    some = logits(model, guide, Batch(data.inputs | {"audio.present": torch.tensor([1, 0, 1, 1])}))
    torch.testing.assert_close(some[1], absent[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some[[0, 2, 3]], logits(model, guide, data)[[0, 2, 3]], rtol=1e-5, atol=1e-6)


# errors


@pytest.mark.parametrize(
    ("build", "kind", "says"),
    [
        (lambda: CoLA(bert(), Bernoulli()), ConfigError, r"at least 2 different encoders.*ModuleDict"),
        (lambda: cola(encoders(3, 2)), ConfigError, "needs equal depths; got 3 and 2"),
        (lambda: cola(share="A", cross_rank=2), ConfigError, "share='A' needs cross_rank = rank; got 2 and 3"),
        (lambda: cola(streams={"text": "cls"}), ConfigError, "streams must name every encoder"),
        (lambda: cola(schedule="progresive"), ConfigError, "Did you mean 'progressive'"),
        (lambda: cola(blocks={"video": []}), ConfigError, "blocks names 'video'"),
        (lambda: Hypernetwork(cola(), gamma=64), ConfigError, "between 1 and the descriptor's width 16; got 64"),
        (lambda: Hypernetwork(cola(), gamma=4, phi="identity", scale="softplus"), ConfigError, "nothing to be unce"),
        (lambda: Contextual(cola()), ConfigError, "Contextual cannot infer 'cross.text"),
        (lambda: cola()(Batch({"input_ids": torch.ones(2, 3).long()})), DataError, "belongs to no encoder"),
    ],
)
def test_errors(build: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        build()


def test_a_model_that_cannot_be_built_leaves_the_encoders_alone() -> None:
    nets = encoders()
    with pytest.raises(ConfigError, match="no site"):
        cola(nets, prior={"cross.video.*": zero_normal()})
    assert not adapted_layers(nets)


def test_a_layer_outside_its_model_says_why_it_cannot_run() -> None:
    model, data = cola(), batch()
    with pytest.raises(ConfigError, match=r"runs without its descriptor.*lock-step"):
        model.backbone["text"](input_ids=data.inputs["text.input_ids"])
