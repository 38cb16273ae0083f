"""The corpus, texts held out of it, and texts from elsewhere that are as long, token by token.

The corpus is what telephone systems say: the English scripts of :mod:`examples.studies.verify_prompts.prompts`. Of each
kind of outside text there is one for each held-out text, cut to its number of tokens, so that no uncertainty can tell
them apart by their length:

* ``shuffled``: the held-out text's own tokens, its words in another order,
* ``foreign``: its translation into Spanish, French or Italian,
* ``docstring``: the beginning of a docstring of Python's standard library,
* ``dialogue``: an utterance of MELD, where its folder is given.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bayes_adapters.errors import DataError
from examples.studies.verify_prompts.prompts import Prompt, normalise

INSIDE = "corpus"
START = "<|endoftext|>"
"""Stands before every text, as between the documents that SmolLM2 was trained on."""
FEWEST_WORDS = 4
FOREIGN = ("es", "fr", "it")


@dataclass(frozen=True)
class Text:
    """One text.

    Args:
        key: unique.
        group: what it is resampled with: the key of the held-out text that it is as long as.
        kind: :data:`INSIDE`, or where it is from.
        ids: its tokens, behind that of :data:`START`.
        given: how many of them are read and not learnt.
    """

    key: str
    group: str
    kind: str
    ids: tuple[int, ...]
    given: int = 0


@dataclass(frozen=True)
class Corpus:
    """What a run reads.

    Args:
        train: texts to learn, each with the end of a text behind it.
        parts: kind → texts to measure, the same number of each, in the same order of groups.
    """

    train: tuple[Text, ...]
    parts: Mapping[str, tuple[Text, ...]]


def make_corpus(
    prompts: Sequence[Prompt],
    others: Mapping[str, Sequence[str]],
    tokenizer: Any,
    *,
    held_out: int,
    longest: int,
    longest_learnt: int = 32,
) -> Corpus:
    """Split the English scripts, and find outside texts for those that are held out; the same at every call.

    Args:
        prompts: in English and in :data:`FOREIGN`; English ones of fewer than :data:`FEWEST_WORDS` words are left out,
            and of equal ones all but one.
        others: kind → texts that are not translations, such as ``docstring``.
        tokenizer: of the language model.
        held_out: how many scripts are not learnt.
        longest: tokens that are measured of a text; it is cut there.
        longest_learnt: tokens that are learnt of a text.

    Raises:
        DataError: too few scripts, or no outside text that is long enough.
    """
    known = {normalise(p.text): p for p in sorted(prompts, key=lambda p: p.key, reverse=True) if p.language == "en"}
    scripts = sorted((p for text, p in known.items() if len(text.split()) >= FEWEST_WORDS), key=lambda p: p.key)
    if len(scripts) <= held_out:
        raise DataError(f"{len(scripts)} scripts cannot give {held_out} to measure: some must remain to be learnt.")
    random.Random("generation").shuffle(scripts)
    start, end = tokenizer.convert_tokens_to_ids(START), tokenizer.eos_token_id

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    train = [
        Text(p.key, p.key, INSIDE, (start, *ids(p.text)[:longest_learnt], end)) for p in scripts[held_out:]
    ]  # fmt: skip
    parts: dict[str, list[Text]] = {kind: [] for kind in (INSIDE, "shuffled", "foreign", *others)}
    foreign = {(p.language, p.key): ids(p.text) for p in prompts if p.language in FOREIGN}
    pools = {kind: _shuffled([ids(text) for text in texts], kind) for kind, texts in others.items()}
    for prompt in scripts[:held_out]:
        own = ids(prompt.text)[:longest]
        translated = [foreign[language, prompt.key] for language in FOREIGN if (language, prompt.key) in foreign]
        found = {
            INSIDE: own,
            "shuffled": [number for word in _shuffled(_words(own, tokenizer), prompt.key) for number in word],
            "foreign": _taken(_shuffled(translated, prompt.key) + list(foreign.values()), len(own), "foreign"),
        }
        found |= {kind: _taken(pool, len(own), kind, remove=True) for kind, pool in pools.items()}
        for kind, tokens in found.items():
            parts[kind].append(Text(f"{kind}/{prompt.key}", prompt.key, kind, (start, *tokens[: len(own)])))
    return Corpus(tuple(train), {kind: tuple(texts) for kind, texts in parts.items()})


def _words(ids: Sequence[int], tokenizer: Any) -> list[list[int]]:
    """Return tokens by word: one that begins with a space begins a word."""
    words: list[list[int]] = []
    for number in ids:
        if not words or tokenizer.decode([number])[:1].isspace():
            words.append([])
        words[-1].append(number)
    return words


def _shuffled(values: Sequence[Any], seed: str) -> list[Any]:
    values = list(values)
    random.Random(seed).shuffle(values)
    return values


def _taken(pool: list[list[int]], length: int, kind: str, *, remove: bool = False) -> list[int]:
    """Return the first text of the pool that has as many tokens; ``remove`` takes it out."""
    for number, tokens in enumerate(pool):
        if len(tokens) >= length:
            return pool.pop(number) if remove else tokens
    raise DataError(f"No text of the kind {kind!r} that is left has {length} tokens.")
