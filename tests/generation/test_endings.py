"""Where texts begin and end: whoever says so, and whatever stands before them."""

from __future__ import annotations

import copy
import string
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import GenerationConfig, PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList

from bayes_adapters.errors import ConfigError
from bayes_adapters.generation import generate
from tests.generation.parts import VOCAB, llama, pair, prompts, t5
from tests.refusals import refuses


class FirstRow(StoppingCriteria):
    """Ends the first text after two tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        ends = torch.zeros(len(input_ids), dtype=torch.bool)
        ends[0] = input_ids.shape[1] >= 6
        return ends


def test_the_backbones_own_end_of_text_counts_beside_a_configuration_of_the_users() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    free = generate(model, guide, prompts(), num_samples=2, max_new_tokens=4)
    model.backbone.generation_config.eos_token_id = int(free.tokens[0, 1])
    config = GenerationConfig(max_new_tokens=4)
    before = copy.deepcopy(config.to_dict())
    found = generate(model, guide, prompts(), num_samples=2, generation_config=config)
    assert config.to_dict() == before
    assert found.written[0].tolist() == [True, True, False, False]
    assert not found.total[0, 2:].any()
    model.backbone.generation_config.num_beams = 2
    with refuses(ConfigError, "num_beams", 2, "backbone.generation_config.num_beams = None"):
        generate(model, guide, prompts(), generation_config=config)


def test_a_criterion_of_the_users_ends_a_text() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    criteria = StoppingCriteriaList([FirstRow()])
    found = generate(model, guide, prompts(), num_samples=2, max_new_tokens=4, stopping_criteria=criteria)
    assert found.lengths.tolist() == [2, 4, 4]
    assert len(criteria) == 1


def test_a_decoder_goes_on_from_its_own_prompt() -> None:
    model, guide = pair("c-lora", t5(), ["q", "v"])
    first = generate(model, guide, prompts(), num_samples=2, max_new_tokens=3)
    begun = {**prompts(), "decoder_input_ids": torch.cat([torch.zeros(3, 1).long(), first.tokens[:, :1]], -1)}
    rest = generate(model, guide, begun, num_samples=2, max_new_tokens=2)
    assert torch.equal(rest.tokens, first.tokens[:, 1:])
    torch.testing.assert_close(rest.draw_log_probs, first.draw_log_probs[..., 1:], rtol=1e-4, atol=1e-5)


def test_embeddings_are_gone_on_from_as_their_tokens_are() -> None:
    model, guide = pair("c-lora", llama(), ["q_proj"])
    ids = prompts()
    vectors = model.backbone.get_input_embeddings()(ids.pop("input_ids")).detach()
    found = generate(model, guide, {"inputs_embeds": vectors, **ids}, num_samples=2, max_new_tokens=3)
    same = generate(model, guide, prompts(), num_samples=2, max_new_tokens=3)
    assert torch.equal(found.tokens, same.tokens)
    torch.testing.assert_close(found.draw_log_probs, same.draw_log_probs)


def test_a_text_ends_at_a_string_that_stops_it() -> None:
    letters = string.ascii_letters[:VOCAB]
    raw = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    model, guide = pair("blob", llama(), ["q_proj"])
    free = generate(model, guide, prompts(), num_samples=2, max_new_tokens=5)
    third = int(free.tokens[0, 2])
    found = generate(
        model, guide, prompts(), num_samples=2, max_new_tokens=5, tokenizer=tokenizer, stop_strings=[letters[third]]
    )
    first = free.tokens[0].tolist().index(third) + 1
    assert int(found.lengths[0]) == first
    assert found.texts[0] == "".join(letters[token] for token in free.tokens[0, :first].tolist())
    torch.testing.assert_close(found.log_probs[0, :first], free.log_probs[0, :first])
    assert not found.log_probs[0, first:].any()
