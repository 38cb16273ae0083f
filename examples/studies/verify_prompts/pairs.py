"""Pairs of a recording and a script, right or wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bayes_adapters.errors import DataError, unknown_name
from examples.studies.verify_prompts.prompts import WORD, Prompt, words

KINDS = ("random", "hard", "foreign")

# Words that sound alike in these prompts: a script changed from one to the other would still be right.
_ALIKE = (
    "zero 0", "one won 1", "two to too 2", "three 3", "four for 4", "five 5", "six 6", "seven 7", "eight ate 8",
    "nine 9", "b be", "c see sea", "i eye", "o oh", "r are", "t tea", "u you", "y why", "your you're", "their there",
)  # fmt: skip
_SOUND = {word: group.split()[0] for group in _ALIKE for word in group.split()}


@dataclass(frozen=True)
class Pair:
    """A recording, a script, and whether the recording says it.

    Args:
        recording_key: the prompt that is heard.
        language: the recording's language.
        script_text: the script shown, English.
        label: 1 if the recording says the script, else 0.
        kind: ``true`` (the recording's own script), ``random`` (another script), ``swap`` (one word changed),
            ``length`` (the other script closest in length) or ``foreign`` (the English script of a foreign recording).
    """

    recording_key: str
    language: str
    script_text: str
    label: int
    kind: str


class WrongScripts:
    """Draws scripts that a recording does not say, from the scripts of one split.

    Args:
        scripts: the split's scripts, at least two that sound different.

    Raises:
        DataError: fewer than two different scripts.
    """

    def __init__(self, scripts: Sequence[str]) -> None:
        self._scripts = sorted(set(scripts))
        self._sounds = {script: sound(script) for script in self._scripts}
        self._vocabulary = sorted({word for script in self._scripts for word in words(script)})
        if len(set(self._sounds.values())) < 2:
            raise DataError(
                f"Wrong scripts need at least two different scripts to draw from; got {len(self._scripts)}."
            )

    def draw(self, kind: str, script: str, source: random.Random) -> str:
        """Return a wrong script in place of ``script``.

        Args:
            kind: ``random``, ``swap`` or ``length``; see :class:`Pair`.
            script: what the recording says.
            source: of randomness.

        Raises:
            ConfigError: ``kind`` is unknown.
        """
        if kind == "swap":
            return self._swap(script, source)
        if kind not in {"random", "length"}:
            raise unknown_name("kind of wrong script", kind, ("random", "swap", "length"))
        others = [other for other in self._scripts if self._sounds[other] != sound(script)]
        if kind == "length":
            gap = min(abs(len(other) - len(script)) for other in others)
            others = [other for other in others if abs(len(other) - len(script)) == gap]
        return source.choice(others)

    def _swap(self, script: str, source: random.Random) -> str:
        old = source.choice(list(WORD.finditer(script)))
        said = sound(old.group())
        new = source.choice([word for word in self._vocabulary if sound(word) != said])
        if old.group().isupper() and len(old.group()) > 1:
            new = new.upper()
        elif old.group()[0].isupper():
            new = new.capitalize()
        return script[: old.start()] + new + script[old.end() :]


def make_pairs(prompts: Sequence[Prompt], split: Sequence[str], kind: str, seed: int) -> list[Pair]:
    """Pair recordings with scripts.

    Args:
        prompts: prompts of every language needed: English, and the others for ``foreign``.
        split: keys of the split; wrong scripts and words come from it alone.
        kind: ``random``: each English recording with its own script and with a random other one. ``hard``: the same
            with a hard one; for half of the recordings one word is changed to another word of the split, for half it is
            the script closest in length. ``foreign``: each foreign recording of the split with the English script of
            its key, label 0; these are out of distribution, and whether a translation "says" the script is a matter of
            definition.
        seed: of the draws.

    Returns:
        For ``random`` and ``hard`` two pairs a recording, the true one first; for ``foreign`` one.

    Raises:
        ConfigError: ``kind`` is unknown.
        DataError: a key of the split is not among the English prompts.
    """
    if kind not in KINDS:
        raise unknown_name("kind of pairs", kind, KINDS)
    english = {prompt.key: prompt for prompt in prompts if prompt.language == "en"}
    absent = [key for key in split if key not in english]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(split)} keys of the split are not among the {len(english)} English prompts, for "
            f"example {absent[:3]}. Were the splits made from other prompts? Make them again with make_splits."
        )
    if kind == "foreign":
        chosen = set(split)
        foreign = [prompt for prompt in prompts if prompt.language != "en" and prompt.key in chosen]
        return [Pair(prompt.key, prompt.language, english[prompt.key].text, 0, "foreign") for prompt in foreign]
    wrong = WrongScripts([english[key].text for key in split])
    source = random.Random(f"{kind}/{seed}")
    kinds = ["random"] * len(split)
    if kind == "hard":
        kinds = ["swap" if i % 2 else "length" for i in range(len(split))]
        source.shuffle(kinds)
    pairs: list[Pair] = []
    for key, how in zip(split, kinds, strict=True):
        script = english[key].text
        pairs += [Pair(key, "en", script, 1, "true"), Pair(key, "en", wrong.draw(how, script, source), 0, how)]
    return pairs


def sound(text: str) -> tuple[str, ...]:
    """Return a script's words with words that sound alike made equal.

    >>> sound("For you") == sound("four, U!")
    True
    """
    return tuple(_SOUND.get(word, word) for word in words(text))
