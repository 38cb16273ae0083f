"""Options of Hugging Face's generate beside the draws; what breaks the draws is refused, and nothing is left behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Categorical, Frames, adapted_layers
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError
from bayes_adapters.generation import generate
from bayes_adapters.guides import Contextual, CrossAttention, Delta
from bayes_adapters.heads import AnswerTokens, LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.models import LoRA, StochasticCore
from tests.generation.parts import VOCAB, gpt2, llama, pair, prompts, t5
from tests.helpers import bert
from tests.refusals import refuses


class Letters:
    """A tokenizer of letters: token 1 is A."""

    def decode(self, tokens: Any, **_: Any) -> str:
        return "".join(chr(64 + int(token)) for token in tokens)


class Heard:
    """A streamer that keeps what it hears."""

    def __init__(self, fail: bool = False) -> None:
        self.tokens: list[int] = []
        self.ended, self.fail = False, fail

    def put(self, value: torch.Tensor) -> None:
        if self.fail and len(self.tokens) > 4:
            raise RuntimeError("the terminal is gone")
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_nothing_counts_behind_the_end_of_a_text() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    free = generate(model, guide, prompts(), num_samples=2, max_new_tokens=6)
    end = int(free.tokens[0, 2])  # the third token of the first text shall end texts
    found = generate(model, guide, prompts(), num_samples=2, max_new_tokens=6, eos_token_id=end, tokenizer=Letters())
    assert model.backbone.generation_config.eos_token_id is None
    first = (free.tokens == end).int().argmax(-1) + 1  # 1 where there is none
    lengths = torch.where((free.tokens == end).any(-1), first, 6)
    assert found.lengths.tolist() == lengths.tolist()
    assert int(found.lengths[0]) < 6
    for row, length in enumerate(found.lengths.tolist()):
        assert torch.equal(found.tokens[row, :length], free.tokens[row, :length])
        assert found.texts[row] == Letters().decode(free.tokens[row, :length])
        for name in ("total", "aleatoric", "epistemic", "log_probs"):
            assert not getattr(found, name)[row, length:].any()
            torch.testing.assert_close(getattr(found, name)[row, :length], getattr(free, name)[row, :length])
    assert not found.draw_log_probs[:, ~found.written].any()


def test_every_hypothesis_of_a_prompt() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    options: dict[str, Any] = {"num_samples": 3, "max_new_tokens": 3, "writing": "each"}
    found = generate(model, guide, prompts(), tokenizer=Letters(), **options)
    texts = found.hypotheses()
    assert [len(own) for own in texts] == [3, 3, 3]
    assert texts[1][2] == Letters().decode(found.tokens[2 * 3 + 1])
    with refuses(ConfigError, "tokenizer="):
        generate(model, guide, prompts(), **options).hypotheses()
    with refuses(ConfigError, "writing='each'"):
        generate(model, guide, prompts(), num_samples=2, max_new_tokens=2, tokenizer=Letters()).hypotheses()


def test_a_text_is_streamed_token_by_token() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    heard, one = Heard(), {"input_ids": torch.tensor([[5, 6, 7]])}
    found = generate(model, guide, one, num_samples=3, max_new_tokens=4, streamer=heard)
    assert heard.tokens[3:] == found.tokens[0].tolist()
    assert heard.ended


def test_nothing_is_left_on_the_backbone_after_an_error() -> None:
    model, guide = pair("c-lora", llama(), ["q_proj"])
    before, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    one = {"input_ids": torch.tensor([[5, 6, 7]])}
    with pytest.raises(RuntimeError):
        generate(model, guide, one, max_new_tokens=4, streamer=Heard(fail=True))
    assert torch.equal(before, torch.get_rng_state())
    assert not model.backbone._forward_hooks
    assert not model.backbone._forward_pre_hooks
    assert not guide.trace.nodes.keys() - {"_INPUT", "_RETURN"}
    assert [m.training for m in model.modules()] == modes
    again = generate(model, guide, one, num_samples=2, max_new_tokens=2)
    assert again.tokens.shape == (1, 2)


def test_a_recording_conditions_what_is_written() -> None:
    net = llama()
    model = StochasticCore(net, NextToken(VOCAB), targets=["q_proj"], rank=2, head=LanguageModelHead())
    guide = CrossAttention(model, context_dim=6, dim=4)
    with torch.no_grad():
        for parameter in [*guide.parameters(), *model.trainable_parameters().values()]:
            parameter.add_(torch.randn_like(parameter))
    frames = Frames(torch.randn(3, 4, 6), torch.ones(3, 4, dtype=torch.bool))
    batch = Batch(prompts(), context={"audio": frames})
    cached, whole, missing = (
        generate(model, guide, given, num_samples=2, max_new_tokens=3, use_cache=cache)
        for given, cache in ((batch, True), (batch, False), (batch.masked("audio"), True))
    )
    torch.testing.assert_close(cached.draw_log_probs, whole.draw_log_probs, rtol=1e-4, atol=1e-4)
    assert float((missing.draw_log_probs - cached.draw_log_probs)[:, :, 0].abs().max()) > 1e-3


def test_options_that_break_the_draws_are_refused_before_any_work() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    refused: dict[str, Any] = {
        "num_beams": 2, "num_return_sequences": 3, "assistant_model": llama(), "cache_implementation": "static",
        "prompt_lookup_num_tokens": 2, "past_key_values": object(),
    }  # fmt: skip
    for name, value in refused.items():
        with refuses(ConfigError, name):
            generate(model, guide, prompts(), **{name: value})
    config = copy.deepcopy(model.backbone.generation_config)
    config.num_beams = 3
    with refuses(ConfigError, "num_beams", 3):
        generate(model, guide, prompts(), generation_config=config)
    with refuses(ConfigError, "stop_strings", "tokenizer="):
        generate(model, guide, prompts(), stop_strings=["A"])
    with refuses(ConfigError, "writing", "'beam'", "average"):
        generate(model, guide, prompts(), writing="beam")
    with refuses(ConfigError, "num_samples", 0):
        generate(model, guide, prompts(), num_samples=0)


def test_prompts_that_cannot_be_gone_on_from_are_refused() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    right = {name: value.flip(-1) for name, value in prompts().items()}
    with refuses(DataError, "[1, 2]", "left"):
        generate(model, guide, right)
    bare = {"input_ids": right["input_ids"]}
    with refuses(DataError, "[1, 2]", "left", "without an attention_mask"):
        generate(model, guide, bare)
    with refuses(DataError, "[1]", "left"):  # padded by the token that ends a text, as other prompts do not end
        generate(model, guide, {"input_ids": torch.tensor([[5, 6], [7, 3]])}, eos_token_id=3, pad_token_id=3)
    chat = {"input_ids": torch.tensor([[5, 3], [7, 3]])}  # whose prompts all end in the end of a turn
    assert generate(model, guide, chat, num_samples=1, max_new_tokens=1, eos_token_id=3, pad_token_id=3).written.all()
    empty = {"input_ids": torch.zeros(2, 2).long(), "attention_mask": torch.tensor([[1, 1], [0, 0]])}
    with refuses(DataError, "[1]", "attention_mask"):
        generate(model, guide, empty)
    with refuses(DataError, "(2, 0)", "bos_token"):
        generate(model, guide, {"input_ids": torch.zeros(2, 0).long()})
    with refuses(DataError, 99, "tokenizer"):
        generate(model, guide, {"input_ids": torch.tensor([[5, 99]])})
    short, its = pair("blob", gpt2(), ["c_attn"])
    with refuses(DataError, 40, 32):
        generate(short, its, {"input_ids": torch.ones(1, 40).long()}, max_new_tokens=1)
    with refuses(DataError, 30, "max_new_tokens=5", 32, "at most 3"):
        generate(short, its, {"input_ids": torch.ones(1, 30).long()}, max_new_tokens=5)
    assert generate(short, its, {"input_ids": torch.ones(1, 30).long()}, max_new_tokens=3).tokens.shape == (1, 3)
    seq2seq, own = pair("blob", t5(), ["q"])
    assert generate(seq2seq, own, right, num_samples=2, max_new_tokens=2).tokens.shape == (3, 2)
    plain = LoRA(bert(), Categorical(2))
    with refuses(ConfigError, "BertModel", "AutoModelForCausalLM"):
        generate(plain, Delta(plain), prompts())


def test_what_only_the_head_reads_does_not_reach_generate() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    model.head.own_inputs = ("answer_mask",)
    marked = {**prompts(), "token_mask": prompts()["attention_mask"], "answer_mask": torch.ones(3, 2).bool()}
    with_it, without = (generate(model, guide, p, num_samples=2, max_new_tokens=2) for p in (marked, prompts()))
    assert torch.equal(with_it.tokens, without.tokens)


def test_a_draw_that_depends_on_the_whole_sequence_is_refused() -> None:
    """It would be another one after each token: with a cache that of the last token alone."""
    net, head = llama(), AnswerTokens([3, 4, 5])
    model = StochasticCore(net, Categorical(3), targets=["q_proj"], rank=2, granularity="sequence", head=head)
    with refuses(ConfigError, "Contextual", "core.model.layers.0.self_attn.q_proj", "'token'"):
        generate(model, Contextual(model), prompts())


@pytest.mark.parametrize("writing", ["average", "each"])
def test_numbers_that_are_none_are_no_certainty(writing: str) -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    with torch.no_grad():
        next(iter(adapted_layers(model.backbone).values())).lora_B[0, 0] = float("nan")
    with refuses(NonFiniteError, "next token", "lora_B"):
        generate(model, guide, prompts(), num_samples=2, max_new_tokens=2, writing=writing)
    assert not model.backbone._forward_hooks
