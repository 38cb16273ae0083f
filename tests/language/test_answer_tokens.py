"""Answers by the logits of a language model: its own numbers, wherever the padding is, for every draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaForCausalLM, LlamaModel

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, Tagging, load, predict, remove, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.files import _backbone
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.heads import AnswerTokens, LinearHead
from bayes_adapters.models import FusionLoRA, LoRA, StochasticCore, StochasticDown
from bayes_adapters.systems import build
from bayes_adapters.training import fit
from tests.helpers import fill_B
from tests.language import parts
from tests.refusals import refuses

A = parts.ANSWERS


def model_of(family: str, kind: Any = LoRA, **options: Any) -> Any:
    settings: dict[str, Any] = {"targets": parts.targets(family), "rank": 2, "head": AnswerTokens(A)} | options
    return fill_B(kind(parts.FAMILIES[family](), Categorical(3), **settings), 0.3)


@pytest.mark.parametrize("family", parts.FAMILIES)
def test_the_logits_are_the_models_own_bitwise(family: str) -> None:
    batch = parts.prompts(family)
    one = parts.alone(batch, 0)
    model = model_of(family)
    few = {"logits_to_keep": 1} if family in parts.DECODERS else {}
    with torch.no_grad(), model.adapters_disabled():
        plain = model.backbone(**one.inputs, use_cache=False, **few).logits[:, -1, A]
        assert torch.equal(model(one), plain)
    if family == "granite":
        hidden = model.backbone.model(**one.inputs).last_hidden_state[:, -1]
        rows = hidden @ model.backbone.lm_head.weight[A].T
        assert not torch.allclose(rows, model(one), atol=1e-3), "copied rows have no scaling"


@pytest.mark.parametrize("family", parts.FAMILIES)
def test_padding_on_the_left_on_the_right_and_none_are_one(family: str) -> None:
    model = model_of(family, StochasticCore, granularity="token")
    guide = Contextual(model)
    right = parts.prompts(family)
    found = predict(model, guide, right, num_samples=2, return_samples=True).samples
    assert found is not None
    rows = [predict(model, guide, parts.alone(right, r), num_samples=2, return_samples=True).samples for r in range(3)]
    torch.testing.assert_close(torch.cat([row for row in rows if row is not None], 1), found, rtol=0, atol=1e-6)
    if family in parts.ENCODER_DECODERS:  # a decoder's padding is on the right, as in its training
        return
    # keyed noise numbers the tokens of a row, so the sides are compared without noise
    sides = [predict(model, guide, parts.prompts(family, side), mean_only=True).probs for side in ("right", "left")]
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("kind", [StochasticCore, StochasticDown])
def test_folded_draws_are_single_passes(family: str, kind: Any) -> None:
    more = [*parts.targets(family), "lm_head"]
    options: dict[str, Any] = {"granularity": "token"} if kind is StochasticCore else {"num_data": 10}
    model = model_of(family, kind, targets=more, **options)
    guide = MeanField(model, init_scale=0.3)
    batch = parts.prompts(family)
    found = [predict(model, guide, batch, num_samples=2, chunk_size=n, return_samples=True).samples for n in (2, 1)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    assert (found[0][0] - found[0][1]).abs().max() > 1e-4  # type: ignore[index]


def test_only_logits_that_are_read_are_computed_of_states_that_are_contiguous() -> None:
    """Of a slice of frozen weights' inputs torch makes a copy of the weights for every row."""
    model, shapes = model_of("llama"), []
    model.backbone.lm_head.register_forward_hook(
        lambda _, states, logits: shapes.append((logits.shape[1], states[0].is_contiguous()))
    )
    for side, most in (("left", 1), ("right", 3)):
        batch = parts.prompts("llama", side)
        model(batch)
        assert shapes.pop() == (most, True)
        assert isinstance(model.head.asks(model.backbone, batch)["logits_to_keep"], list), "of no device"
    model(Batch({"input_ids": torch.randint(1, 20, (3, 4))}))
    assert shapes.pop() == (1, True)


def test_a_family_that_keeps_the_last_ones_only() -> None:
    class Older(LlamaForCausalLM):
        def forward(self, *args: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
            shapes.append(logits_to_keep)
            return super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)

    shapes: list[int] = []
    model, older = model_of("llama"), Older(parts.llama().config).eval()  # type: ignore[arg-type]
    older.load_state_dict(parts.llama().state_dict())
    plain = LoRA(older, Categorical(3), targets=["q_proj"], head=AnswerTokens(A))
    batch = parts.prompts("llama")
    with model.adapters_disabled(), torch.no_grad():
        torch.testing.assert_close(plain(batch), model(batch))
    assert shapes == [5], "texts of 6, 4 and 5 tokens of 8: the shortest ends at the fifth from the end"


def test_what_comes_before_the_first_adapted_layer_runs_once() -> None:
    model = model_of("llama", StochasticCore, granularity="token", targets=["layers.1.self_attn.q_proj"])
    guide, rows = MeanField(model), []
    for block in model.backbone.model.layers:
        block.register_forward_hook(
            lambda *args: rows.append(len(args[2][0] if isinstance(args[2], tuple) else args[2]))
        )
    batch = parts.prompts("llama")
    folded = predict(model, guide, batch, num_samples=2, chunk_size=2)
    assert rows == [3, 6]
    torch.testing.assert_close(folded.probs, predict(model, guide, batch, num_samples=2, chunk_size=1).probs)


def test_answers_that_an_example_does_not_have() -> None:
    model = model_of("llama")
    guide, inputs = Delta(model), parts.prompts("llama").inputs
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 1]]).bool()
    masked = Batch({**inputs, "answer_mask": mask}, torch.tensor([0, 2, 1]))
    found, free = predict(model, guide, masked), predict(model, guide, Batch(inputs))
    assert (found.probs[~mask] == 0).all()
    expected = free.probs * mask
    torch.testing.assert_close(found.probs, expected / expected.sum(-1, keepdim=True))
    fit(model, guide, masked, epochs=1, progress=False)
    for call in (lambda b: predict(model, guide, b), ELBO(model, guide)):
        with refuses(DataError, [1], "answer_mask"):
            call(Batch(masked.inputs, torch.tensor([0, 1, 1])))
    with refuses(DataError, "answer_mask", (3, 2), 3):
        model(Batch({**inputs, "answer_mask": mask[:, :2]}))
    with refuses(DataError, "answer_mask", [2]):
        model(Batch({**inputs, "answer_mask": mask & torch.tensor([[1], [1], [0]]).bool()}))
    linear = LoRA(parts.llama().model, Categorical(3), targets=["q_proj"], head=LinearHead("last"))
    with refuses(DataError, "answer_mask", "LinearHead"):
        linear(masked)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_tied_output_layer_is_adapted_and_the_embedding_left_alone(family: str, tmp_path: Path) -> None:
    plain = parts.FAMILIES[family]()
    before, table = _backbone.fingerprint(plain), plain.get_input_embeddings().weight.clone()  # type: ignore[operator]
    model = LoRA(plain, Categorical(3), targets=["lm_head"], rank=2, head=AnswerTokens(A))
    guide, batch = Delta(model), parts.prompts(family)
    batch = Batch(batch.inputs, torch.tensor([0, 1, 2]))
    first = predict(model, guide, batch)
    fit(model, guide, batch, epochs=20, progress=False)
    after = predict(model, guide, batch)
    assert after.log_density.sum() > first.log_density.sum() + 0.05  # type: ignore[union-attr]
    assert torch.equal(plain.get_input_embeddings().weight, table)  # type: ignore[operator]
    assert _backbone.fingerprint(plain) == before
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, parts.FAMILIES[family]())
    assert torch.equal(predict(again, guide_again, batch).probs, after.probs)
    assert not list(model.head.parameters())
    assert remove(plain).lm_head.weight is plain.get_input_embeddings().weight  # type: ignore[operator]


def test_what_is_refused_before_any_pass() -> None:
    llama: Any = parts.llama()
    with refuses(ConfigError, "AnswerTokens", "LlamaModel", "AutoModelForCausalLM"):
        LoRA(LlamaModel(llama.config), Categorical(3), targets=["q_proj"], head=AnswerTokens(A))
    masked = BertForMaskedLM(BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with refuses(ConfigError, "AnswerTokens", "BertForMaskedLM"):
        LoRA(masked, Categorical(3), head=AnswerTokens(A))
    for likelihood, said in ((Categorical(4), "4 outputs"), (Bernoulli(), "1 outputs"), (Tagging(3), "Tagging")):
        with refuses(ConfigError, "AnswerTokens", said, "Categorical(3)"):
            LoRA(llama, likelihood, targets=["q_proj"], head=AnswerTokens(A))
    with refuses(ConfigError, [40], 40):
        LoRA(llama, Categorical(2), targets=["q_proj"], head=AnswerTokens([1, 40]))
    with refuses(ConfigError, "AnswerTokens", "LlamaForCausalLM", 16):
        FusionLoRA(llama, Categorical(3), targets=["q_proj"], context_dim=4, head=AnswerTokens(A))
    with refuses(ConfigError, "LlamaForCausalLM", "AutoModel.from_pretrained"):
        LoRA(llama, Categorical(3), targets=["q_proj"])
    for answers in ([3], [3, 3], [1, -2], [True, False]):
        with refuses(ConfigError, "AnswerTokens.of"):
            AnswerTokens(answers)
    model = LoRA(parts.t5(), Categorical(3), targets=["q"], head=AnswerTokens(A))
    with refuses(DataError, "decoder_input_ids", "T5ForConditionalGeneration", 0):
        model(Batch({"input_ids": torch.randint(3, 40, (2, 5))}))


def test_answers_are_single_tokens_of_the_tokenizer() -> None:
    words = parts.tokenizer()
    assert AnswerTokens.of(words, ["A", "B"]).ids == (8, 9)
    assert AnswerTokens.of(words, ["A", "B", "C"], prefix="").ids == (5, 6, 7)
    with refuses(ConfigError, "' C'", "prefix=''"):
        AnswerTokens.of(words, ["A", "C"])
    with refuses(ConfigError, "' green'", 2, [12, 13]):
        AnswerTokens.of(words, ["blue", "green"])
    with refuses(ConfigError, "'blue'", "prefix=' '"):
        AnswerTokens.of(words, ["blue"], prefix="")
    with refuses(ConfigError, "'Z'", "[UNK]"):
        AnswerTokens.of(words, ["A", "Z"], prefix="")
    with refuses(ConfigError, "'A', 'A'"):
        AnswerTokens.of(words, ["A", "A"])


@pytest.mark.parametrize("system", ["blob", "scalabl", "c-lora", "bayeslora-2026"])
def test_published_systems_choose_answers_as_their_papers_do(system: str) -> None:
    where: Any = {"targets": ["q_proj", "v_proj", "lm_head"], "rank": 2, "head": AnswerTokens(A)}
    model, guide = build(system, parts.llama(), Categorical(3), num_data=3, **where)
    batch = Batch(parts.prompts("llama").inputs, torch.tensor([0, 1, 2]))
    assert fit(model, guide, batch, max_steps=2, progress=False).steps == 2
    assert "lm_head" in model.layers
    assert (predict(model, guide, batch, num_samples=2).epistemic > 0).all()
