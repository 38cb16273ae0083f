"""The words of a text: Hugging Face's own loss, whatever the padding, the draws, and the logits at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from bayes_adapters import ELBO, Batch, Categorical, adapted_layers, load, predict, save
from bayes_adapters.distributions import NextTokens, TokenLogits
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.heads import LanguageModelHead, LinearHead
from bayes_adapters.likelihoods import NextToken, Tasks
from bayes_adapters.models import LoRA, StochasticCore, StochasticDown
from bayes_adapters.training import fit
from tests.helpers import fill_B
from tests.language import parts
from tests.refusals import refuses

V = parts.VOCAB


def model_of(family: str, kind: Any = LoRA, recompute: bool = True, **options: Any) -> Any:
    settings: dict[str, Any] = {"targets": parts.targets(family), "rank": 2, "head": LanguageModelHead(recompute)}
    return fill_B(kind(parts.FAMILIES[family](), NextToken(V), **(settings | options)), 0.3)


def labelled(batch: Batch, prompt: int = 0) -> Batch:
    """The texts themselves as targets, without padding and the first ``prompt`` tokens."""
    key = "decoder_" if "decoder_input_ids" in batch.inputs else ""
    mask = batch.inputs[f"{key}attention_mask"].bool()
    read = mask & (mask.cumsum(1) > prompt)
    return Batch(batch.inputs, torch.where(read, batch.inputs[f"{key}input_ids"], -100), index=batch.index)


@pytest.mark.parametrize("family", parts.FAMILIES)
def test_logits_and_loss_are_hugging_faces(family: str) -> None:
    model, batch = model_of(family), labelled(parts.prompts(family), prompt=2)
    assert model.head.listens(model.backbone), "these families make their logits of hidden states"
    with torch.no_grad():
        own = model.backbone(**batch.inputs, labels=batch.targets, use_cache=False)
        found = model(batch)
        assert torch.equal(found.logits(), own.logits)
    count = int((batch.targets[:, family in parts.DECODERS :] != -100).sum())  # type: ignore[index]
    torch.testing.assert_close(ELBO(model, Delta(model))(batch) * 3 / count, own.loss)
    prediction = predict(model, Delta(model), batch)
    torch.testing.assert_close(prediction.perplexity, own.loss.exp())  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["llama", "gpt2", "cohere"])
def test_texts_padded_on_either_side_are_those_alone(family: str) -> None:
    model = model_of(family)
    guide = Delta(model)
    right, left = (predict(model, guide, labelled(parts.prompts(family, side))) for side in ("right", "left"))
    torch.testing.assert_close(right.log_density, left.log_density, rtol=0, atol=1e-5)
    torch.testing.assert_close(right.total.sum(1), left.total.sum(1), rtol=0, atol=1e-5)
    for row in range(3):
        one = predict(model, guide, labelled(parts.alone(parts.prompts(family), row)))
        torch.testing.assert_close(one.log_density, right.log_density[row : row + 1], rtol=0, atol=1e-5)  # type: ignore[index]
        torch.testing.assert_close(one.mean[0], right.mean[row, : one.mean.shape[1]], rtol=0, atol=1e-6)
    assert (right.total[~right.scored] == 0).all()
    assert (right.mean[~right.scored] == 0).all()


@pytest.mark.parametrize("kind", [StochasticCore, StochasticDown])
def test_folded_draws_and_an_adapted_output_layer(kind: Any) -> None:
    options: dict[str, Any] = {"granularity": "token"} if kind is StochasticCore else {"num_data": 10}
    model = model_of("llama", kind, targets=["q_proj", "lm_head"], **options)
    guide, batch = MeanField(model, init_scale=0.3), labelled(parts.prompts("llama"))
    assert not model.head.listens(model.backbone), "outside a pass it is not known how the output layer draws"
    found, single = (predict(model, guide, batch, num_samples=2, chunk_size=n) for n in (2, 1))
    for name in ("total", "aleatoric", "log_density", "information", "mean"):
        torch.testing.assert_close(getattr(found, name), getattr(single, name), rtol=0, atol=1e-5)
    assert found.epistemic.max() > 1e-4
    by_hand = [predict(model, guide, batch, num_samples=1, seed=s) for s in (0, 1)]
    assert not torch.equal(by_hand[0].total, by_hand[1].total)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["v_proj", "lm_head"]])
def test_recomputed_logits_have_the_same_gradients(targets: list[str]) -> None:
    grads = []
    for recompute in (True, False):
        model = model_of("llama", StochasticDown, recompute, targets=targets, num_data=10).train()
        guide, batch = MeanField(model, init_scale=0.1), labelled(parts.prompts("llama"))
        torch.manual_seed(5)
        ELBO(model, guide, num_particles=2)(batch).backward()
        both = [*model.named_parameters(), *guide.named_parameters()]
        grads.append({name: p.grad for name, p in both if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert len(grads[0]) > 2
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6)
        assert grad.abs().max() > 0, name


def test_a_model_without_a_way_of_its_own_is_read_as_it_comes() -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "word_embed_proj_dim": 8,
    }
    net = OPTForCausalLM(OPTConfig(vocab_size=V, max_position_embeddings=32, **sizes)).eval()
    model = LoRA(net, NextToken(V), targets=["q_proj"], rank=2, head=LanguageModelHead())
    batch = labelled(parts.prompts("opt"))
    own = net(**batch.inputs, labels=batch.targets, use_cache=False)
    with torch.no_grad():
        torch.testing.assert_close(model(batch).logits(), own.logits)


def test_a_trained_text_is_saved_and_loaded(tmp_path: Path) -> None:
    model = model_of("gpt2", StochasticDown, num_data=3, targets=["c_attn", "lm_head"])
    guide, batch = MeanField(model), labelled(parts.prompts("gpt2"), prompt=1)
    before = predict(model, guide, batch, num_samples=2)
    result = fit(model, guide, batch, epochs=6, validation=batch, num_samples=2, kl_weight=1e-3, progress=False)
    assert result.history[-1]["val_nll"] < result.history[0]["val_nll"]
    after = predict(model, guide, [batch[:1], batch[1:]], num_samples=2)
    assert after.perplexity < before.perplexity  # type: ignore[attr-defined]
    save(tmp_path, model, guide)
    again = predict(*load(tmp_path, parts.gpt2()), batch, num_samples=2)
    torch.testing.assert_close(again.log_density, after.log_density)
    assert torch.equal(again.tokens[again.scored], after.tokens[after.scored])  # type: ignore[attr-defined]


def test_a_text_without_targets_has_entropies() -> None:
    model, batch = model_of("llama"), parts.prompts("llama")
    found = predict(model, Delta(model), batch)
    mask = batch.inputs["attention_mask"].bool()
    assert torch.equal(found.scored, mask & (mask.cumsum(1) > 1))  # type: ignore[attr-defined]
    assert found.log_density is None
    assert (found.total[found.scored] > 0).all()
    with refuses(ConfigError, "targets=labels"):
        _ = found.perplexity  # type: ignore[attr-defined]


def test_draws_of_texts() -> None:
    logits = torch.full((1, 3, 4), -50.0)
    logits[0, 0, 2] = logits[0, 1, 3] = 50.0
    texts = NextTokens(TokenLogits(logits, lambda hidden: hidden, 4, 1, (1,)), torch.tensor([[True, True, True]]))
    assert texts.sample().tolist() == [[-100, 2, 3]]
    assert texts.sample(torch.Size([2])).shape == (2, 1, 3)


def packed(documents: list[Tensor]) -> dict[str, Tensor]:
    """Documents behind one another in a row, by their positions; labels leave out each one's first token."""
    ids = torch.cat(documents)[None]
    places = torch.cat([torch.arange(len(document)) for document in documents])[None]
    return {"input_ids": ids, "position_ids": places, "labels": torch.where(places == 0, -100, ids)}


@pytest.mark.parametrize("how", ["positions", "mask"])
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_packed_documents_do_not_see_each_other(family: str, how: str) -> None:
    documents = [torch.randint(3, V, (n,), generator=torch.Generator().manual_seed(n)) for n in (6, 4, 5)]
    inputs = packed(documents)
    labels = inputs.pop("labels")
    if how == "mask":
        number = (inputs["position_ids"] == 0).cumsum(1)
        allowed = (number[:, :, None] == number[:, None]) & torch.ones(15, 15).tril().bool()
        inputs |= {"attention_mask": allowed[:, None], "token_mask": torch.ones(1, 15, dtype=torch.bool)}
    model = model_of(family)
    guide = Delta(model)
    together = predict(model, guide, Batch(inputs, labels))
    single = [predict(model, guide, Batch({"input_ids": d[None]}, d[None])) for d in documents]
    each = torch.stack([one.log_density.sum() for one in single if one.log_density is not None])
    torch.testing.assert_close(together.log_density, each.sum()[None], rtol=0, atol=1e-5)
    loss, alone = ELBO(model, guide)(Batch(inputs, labels)), -each.sum()
    torch.testing.assert_close(loss.detach(), alone, rtol=0, atol=1e-5)
    leaking = Batch({"input_ids": inputs["input_ids"]}, labels)
    assert (predict(model, guide, leaking).log_density - each.sum()).abs() > 1e-3  # type: ignore[operator]


def test_what_is_refused() -> None:
    llama: Any = parts.llama()
    with refuses(ConfigError, "NextToken", "LinearHead", "LanguageModelHead()"):
        LoRA(llama.model, NextToken(V), targets=["q_proj"], head=LinearHead())
    with refuses(ConfigError, "LanguageModelHead", "Categorical", "AnswerTokens"):
        LoRA(llama, Categorical(3), targets=["q_proj"], head=LanguageModelHead())
    with refuses(ConfigError, 41, 40, "LlamaForCausalLM"):
        LoRA(llama, NextToken(41), targets=["q_proj"], head=LanguageModelHead())
    with refuses(ConfigError, "LanguageModelHead", "Tasks"):
        LoRA(llama, Tasks({"text": NextToken(V)}), targets=["q_proj"], head=LanguageModelHead())
    model = model_of("llama", StochasticDown, num_data=3)
    guide, batch = MeanField(model), labelled(parts.prompts("llama"))
    with refuses(ConfigError, "NextToken", "return_samples=True"):
        predict(model, guide, batch, return_samples=True)
    with refuses(ConfigError, "NextToken", "AnswerTokens"):
        predict(model, guide, batch, linearised=True)
    labels: Any = batch.targets
    for wrong, facts in (
        (torch.full_like(labels, -100), ([0, 1, 2], -100)),
        (torch.where(torch.arange(8) == 0, labels, -100), ([0, 1, 2],)),
        (labels.masked_fill(labels == labels[0, 1], 40), (39, 40)),
        (labels[:, 0], ((3,), "input_ids.clone()")),
        (labels[:, :5], (5, 8)),
    ):
        with refuses(DataError, *facts):
            ELBO(model, guide)(Batch(batch.inputs, wrong))
    with refuses(DataError, "decoder_input_ids"):
        model_of("bart")(Batch({"input_ids": labels.clamp_min(3)}, labels.clamp_min(3)))


def test_numbers_that_are_none_name_their_cause() -> None:
    """Not the way from hidden states to logits, which no longer compares."""
    model = model_of("llama")
    with torch.no_grad():
        next(iter(adapted_layers(model.backbone).values())).lora_B[0, 0] = float("nan")
    with refuses(NonFiniteError, "lora_B", "NaN"):
        predict(model, Delta(model), labelled(parts.prompts("llama")))
