"""Several encoders, and one target per token of one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, Hypernetwork, MeanField
from bayes_adapters.likelihoods import Likelihood, Tasks
from bayes_adapters.models import CoLA, ConcatLoRA, LoRA, Wander
from tests.helpers import WIDTH, bert, fill_B, logits, vit
from tests.refusals import refuses
from tests.test_recomputation import gradients, same, switch_on
from tests.text_and_audio import batch
from tests.text_and_audio import encoders as pair

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
LABELS = (torch.arange(28).reshape(4, 7) % 3).index_fill(1, torch.tensor([0]), -100)


def encoders() -> nn.ModuleDict:
    return pair(1, 1)


def concat(nets: nn.ModuleDict, likelihood: Likelihood, **options: Any) -> Any:
    return fill_B(ConcatLoRA(nets, likelihood, **{"rank": 2, "dense": "text", **options}))


def cola(nets: nn.ModuleDict, likelihood: Likelihood, **options: Any) -> Any:
    return fill_B(CoLA(nets, likelihood, **{"rank": 2, "dense": "text", **options}))


def wander(nets: nn.ModuleDict, likelihood: Likelihood, **options: Any) -> Any:
    settings = {"num_data": 50, "lengths": {"text": 4, "audio": 3}, "fusion_rank": 2, "terms": 2, "dense": "text"}
    torch.manual_seed(1)
    model = Wander(nets, likelihood, **{**settings, **options})
    with torch.no_grad():
        for gate in model.gate:
            gate.fill_(0.5)
        for null in model.null.values():
            null.normal_()
    return model


def everywhere(nets: nn.ModuleDict, likelihood: Likelihood, **options: Any) -> Any:
    return wander(nets, likelihood, **{"every_layer": True, **options})


MAKERS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (concat, Delta),
    (cola, lambda m: Hypernetwork(m, gamma=2, scale="softplus")),
    (wander, MeanField),
    (everywhere, MeanField),
]
several = pytest.mark.parametrize(("make", "infer"), MAKERS, ids=["concat", "cola", "wander", "wander everywhere"])


def labelled(size: int = 4, **more: Tensor) -> Batch:
    return Batch(batch(size, **more).inputs, LABELS[:size])


def hidden_of(model: Any, guide: Any, data: Batch) -> dict[str, Tensor]:
    """The last hidden states of every encoder in one pass of the model, and its outputs."""
    found: dict[str, Tensor] = {}
    hooks = [
        net.register_forward_hook(lambda _m, _a, out, name=name: found.__setitem__(name, out.last_hidden_state))
        for name, net in model.backbone.items()
    ]
    found["outputs"] = logits(guide, data)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("make", [concat, cola, everywhere], ids=["concat", "cola", "wander everywhere"])
def test_a_token_sees_its_own_state_and_the_pooled_others(make: Callable[..., Any]) -> None:
    model = make(encoders(), Tagging(3))
    data = labelled(**{"audio.present": torch.tensor([1, 1, 0, 1])})
    with torch.no_grad():
        model.null["audio"].normal_()
    found = hidden_of(model, MeanField(model) if model.sites else Delta(model), data)
    audio = torch.where(data.inputs["audio.present"].bool()[:, None], found["audio"].mean(1), model.null["audio"])
    features = torch.cat([found["text"], audio[:, None].expand(-1, 7, -1)], -1)
    expected = features @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(found["outputs"], expected.log_softmax(-1), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(audio[1], audio[2])


def test_tokens_stand_beside_the_mean_of_the_fused_ones() -> None:
    model, data = wander(encoders(), Tagging(3)), labelled()
    guide = Delta(model)
    pooled = wander(encoders(), Categorical(3), dense=None)
    pooled_guide = Delta(pooled)
    pooled_guide.load_state_dict(guide.state_dict(), strict=False)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(("head", "null"))}
    assert not pooled.load_state_dict(own, strict=False).unexpected_keys
    with torch.no_grad():
        pooled.head.weight.copy_(torch.ones_like(pooled.head.weight))
    found = hidden_of(model, guide, data)
    fused: list[Tensor] = []
    pooled.head.register_forward_pre_hook(lambda _m, args: fused.append(args[0]))
    logits(pooled_guide, Batch(data.inputs))
    features = torch.cat([found["text"], fused[0][:, None].expand(-1, 7, -1)], -1)
    expected = features @ model.head.weight.T + model.head.bias
    assert model.feature_width(model.backbone) == 2 * WIDTH
    torch.testing.assert_close(found["outputs"], expected.log_softmax(-1), rtol=1e-5, atol=1e-6)


def test_one_encoder_is_the_model_of_that_encoder() -> None:
    alone, data = fill_B(LoRA(bert(1), Tagging(3), targets="all-linear", rank=2)), labelled()
    text = {k.removeprefix("text."): v for k, v in data.inputs.items() if k.startswith("text.")}
    model = concat(nn.ModuleDict({"text": bert(1)}), Tagging(3))
    model.head.load_state_dict(alone.head.state_dict())
    model.backbone["text"].load_state_dict(alone.backbone.state_dict())
    one = Batch({f"text.{k}": v for k, v in text.items()}, LABELS)
    assert torch.equal(logits(Delta(model), one), logits(Delta(alone), Batch(text, LABELS)))
    ours, theirs = (predict(m, Delta(m), b).log_density for m, b in ((model, one), (alone, Batch(text, LABELS))))
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)


@several
def test_padding_counts_nowhere_and_a_file_predicts_the_same(
    make: Callable[..., Any], infer: Callable[..., Any], tmp_path: Path
) -> None:
    model, data = make(encoders(), Tagging(3)), labelled()
    guide = infer(model)
    real = data.inputs["text.attention_mask"].bool()
    other = dict(data.inputs)
    other["text.input_ids"] = torch.where(real, other["text.input_ids"], 39 - other["text.input_ids"])
    labels = torch.where(real, LABELS, 2 - LABELS.clamp_min(0))
    first = predict(model, guide, data, num_samples=3)
    second = predict(model, guide, Batch(other, labels), num_samples=3, chunk_size=1)
    torch.testing.assert_close(first.mean[real], second.mean[real], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.log_density, second.log_density, rtol=1e-5, atol=1e-6)
    assert not first.mean[~real].any()
    torch.testing.assert_close(first.mean[real].sum(-1), torch.ones(int(real.sum())))
    save(tmp_path / "a", model, guide)
    again = load(tmp_path / "a", encoders())
    assert again[0].config()["dense"] == "text"
    assert "prefix_tokens" not in again[0].config()
    assert torch.equal(first.mean, predict(*again, data, num_samples=3).mean)


@pytest.mark.parametrize(("make", "infer"), [MAKERS[0], MAKERS[2]], ids=["concat", "wander"])
def test_an_example_that_lacks_the_labelled_encoder_has_no_labels(
    make: Callable[..., Any], infer: Callable[..., Any]
) -> None:
    model = make(encoders(), Tasks({"tags": Tagging(3), "kind": Categorical(2)}))
    guide, kinds = infer(model), torch.tensor([0, 1, 1, 0])
    data = labelled(**{"text.present": torch.tensor([1, 1, 0, 1])})
    both = Batch(data.inputs, {"tags": LABELS, "kind": kinds})
    found = predict(model, guide, both, num_samples=2)
    assert not found["tags"].mean[2].any()
    assert bool(found["kind"].mean.isfinite().all())
    alone = predict(model, guide, Batch(data.inputs, {"kind": kinds}), num_samples=2).log_density
    assert found.log_density is not None
    assert alone is not None
    torch.testing.assert_close(found.log_density[2], alone[2])
    assert found.log_density[0] < alone[0]
    loss = ELBO(model, guide)(both)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(model.null["text"].grad.ne(0).any())


@pytest.mark.parametrize("make", [concat, cola], ids=["concat", "cola"])
def test_both_encoders_have_gradients_and_checkpointing_changes_none(make: Callable[..., Any]) -> None:
    model = make(encoders(), Tagging(3))
    elbo = ELBO(model, MeanField(model) if model.sites else Delta(model)).train()
    expected = gradients(elbo, [labelled()])
    ups = {n: p for n, p in model.backbone.named_parameters() if n.endswith("lora_B") and "inter" not in n}
    for name in ("text", "audio"):
        own = [p.grad for n, p in ups.items() if n.startswith(name)]
        assert any(g is not None and bool(g.ne(0).any()) for g in own)
    switch_on(model.backbone)
    same(gradients(elbo, [labelled()]), expected)


def test_patches_and_the_class_token() -> None:
    nets = nn.ModuleDict({"image": vit(1), "text": bert(1)})
    text = {k: v for k, v in batch().inputs.items() if k.startswith("text.")}
    inputs = {"image.pixel_values": torch.randn(4, 3, 16, 16), **text}
    patches = torch.arange(16).reshape(4, 4) % 3
    model = concat(nets, Tagging(3), dense="image", prefix_tokens=1)
    found = predict(model, Delta(model), Batch(inputs, patches))
    with_class = concat(nn.ModuleDict({"image": vit(1), "text": bert(1)}), Tagging(3), dense="image")
    with_class.load_state_dict(model.state_dict())
    padded = nn.functional.pad(patches, (1, 0), value=-100)
    whole = predict(with_class, Delta(with_class), Batch(inputs, padded))
    assert torch.equal(found.mean, whole.mean[:, 1:])
    torch.testing.assert_close(found.log_density, whole.log_density)
    with refuses(DataError, 4, 5, "-100"):
        predict(with_class, Delta(with_class), Batch(inputs, patches))


def test_what_is_refused() -> None:
    with refuses(ConfigError, "ConcatLoRA", "Tagging", "dense="):
        ConcatLoRA(encoders(), Tagging(3))
    with refuses(ConfigError, "dense='text'", "Bernoulli"):
        ConcatLoRA(encoders(), Bernoulli(), dense="text")
    with refuses(ConfigError, "'txet'", "Did you mean 'text'"):
        CoLA(encoders(), Tagging(3), dense="txet")
    with refuses(ConfigError, "dense", "bool"):
        ConcatLoRA(encoders(), Tagging(3), dense=True)
    with refuses(ConfigError, "prefix_tokens=1", "dense=4"):
        ConcatLoRA(encoders(), Tagging(3), dense=4, prefix_tokens=1)
    with refuses(ConfigError, "prefix_tokens", -1):
        ConcatLoRA(encoders(), Tagging(3), dense="text", prefix_tokens=-1)
    model = concat(encoders(), Tagging(3), prefix_tokens=7)
    with refuses(ConfigError, "prefix_tokens=7", "'text'"):
        logits(Delta(model), labelled())
    model = concat(encoders(), Tagging(3))
    with refuses(DataError, "dense='text'", "text.present"):
        logits(Delta(model), Batch({k: v for k, v in batch().inputs.items() if k.startswith("audio")}))
    with refuses(DataError, "text.segment", "dense="):
        logits(Delta(model), labelled(**{"text.segment": torch.zeros(4, 7, dtype=torch.long)}))
