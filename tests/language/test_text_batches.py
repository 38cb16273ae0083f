"""Batches of strings: what is learnt of them, and what tokenizers and texts are refused for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from bayes_adapters.data.texts import completions, prompts
from bayes_adapters.errors import ConfigError, DataError
from tests.language.parts import tokenizer
from tests.refusals import refuses


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_completion_is_learnt_and_its_prompt_read(side: str) -> None:
    words: Any = tokenizer(pad_token="[PAD]", padding_side=side)
    batch = completions(words, ["Answer:", "sky blue:"], [" A", " green"], longest=9)
    ids, labels = batch.inputs["input_ids"], batch.targets
    assert isinstance(labels, torch.Tensor)
    learnt = [row[row != -100].tolist() for row in labels]
    assert learnt == [[8, 2], [12, 13, 2]]
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    real = batch.inputs["attention_mask"].bool()
    assert [row[keep].tolist() for row, keep in zip(ids, real, strict=True)] == [[3, 4, 8, 2], [10, 11, 4, 12, 13, 2]]
    assert bool(real[0, 0]) is (side == "right")
    assert completions(words, ["Answer:"], [" A"], longest=9, end=False).inputs["input_ids"].tolist() == [[3, 4, 8]]
    assert torch.equal(
        prompts(words, ["Answer:"], torch.tensor([1]), longest=9).inputs["input_ids"], ids[:1, real[0]][:, :2]
    )


def test_a_text_that_a_template_has_begun_is_not_begun_again() -> None:
    """A tokenizer that puts the beginning of a text before each, and a text that has it."""
    words: Any = tokenizer(pad_token="[PAD]", bos_token="[UNK]")
    words._tokenizer.post_processor = TemplateProcessing(single="[UNK] $A", special_tokens=[("[UNK]", 0)])
    plain, begun = (prompts(words, [text], longest=9).inputs["input_ids"].tolist() for text in ("A:", "[UNK]A:"))
    assert plain == begun == [[0, 5, 4]]
    assert completions(words, ["[UNK]A:"], [" A"], longest=9).inputs["input_ids"].tolist() == [[0, 5, 4, 8, 2]]


def test_an_end_that_a_tokenizer_puts_behind_every_text_is_behind_the_completion_alone() -> None:
    words: Any = tokenizer(pad_token="[PAD]")
    words._tokenizer.post_processor = TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    assert prompts(words, ["A:"], longest=9).inputs["input_ids"].tolist() == [[5, 4, 2]]
    for text, expected in (("A:", [5, 4, 8, 2]), ("A:[END]", [5, 4, 2, 8, 2])):  # a template's own end of a turn stays
        assert completions(words, [text], [" A"], longest=9).inputs["input_ids"].tolist() == [expected]


def test_what_is_refused() -> None:
    words = tokenizer(pad_token="[PAD]")
    with refuses(ConfigError, "tokenizer.pad_token", "tokenizer.eos_token"):
        prompts(tokenizer(), ["Answer:"], longest=9)
    with refuses(DataError, "texts", "''"):
        prompts(words, ["Answer:", ""], longest=9)
    with refuses(DataError, "written", "''"):
        completions(words, ["Answer:"], [""], longest=9)
    with refuses(DataError, [1], 4, "longest=3"):
        prompts(words, ["Answer:", "Answer: A:"], longest=3)
    with refuses(DataError, "written", 1, 2):
        completions(words, ["Answer:", "Answer:"], [" A"], longest=9)
