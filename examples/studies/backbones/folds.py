"""Folds of the English prompts: no script is in two of them, and every recording is tested once."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bayes_adapters.errors import ConfigError
from examples.studies.verify_prompts.prompts import Prompt, Splits, normalise

COUNT = 5
VALIDATION = 54
"""Recordings that an epoch and a temperature are chosen on, as many as in :mod:`examples.studies.verify_prompts`."""


@dataclass(frozen=True)
class Folds:
    """K parts of the English prompts; recordings with one normalised script are in one part.

    Args:
        parts: keys of each part.
        scripts: key → its normalised script.
    """

    parts: tuple[tuple[str, ...], ...]
    scripts: Mapping[str, str]

    @classmethod
    def make(cls, prompts: Sequence[Prompt], count: int = COUNT, *, seed: int = 0) -> Folds:
        """Deal the scripts, in random order, each with all its recordings to the part that has the fewest.

        Args:
            prompts: any prompts; only the English ones are dealt.
            count: K.
            seed: of the order.

        Raises:
            ConfigError: K is below 3 (a fold trains, validates and tests on different scripts) or above the number of
                scripts.
        """
        scripts = {prompt.key: normalise(prompt.text) for prompt in prompts if prompt.language == "en"}
        groups = _groups(scripts, sorted(scripts))
        if not 3 <= count <= len(groups):
            raise ConfigError(
                f"{len(groups)} English scripts cannot be dealt to {count} folds: take at least 3, so that scripts to "
                "train, to validate and to test on differ, and at most one fold per script."
            )
        random.Random(f"folds/{seed}").shuffle(groups)
        parts: list[list[str]] = [[] for _ in range(count)]
        for group in groups:
            min(parts, key=len).extend(group)
        return cls(tuple(map(tuple, parts)), scripts)

    def of(self, key: str) -> tuple[str, ...]:
        """Return the part that ``key`` is in, or an empty tuple; babble is made of these recordings."""
        return next((part for part in self.parts if key in part), ())

    def to_json(self) -> str:
        """Return the parts as JSON."""
        return json.dumps(self.parts)

    def splits(self, fold: int, validation: int = VALIDATION) -> Splits:
        """Return the splits of one fold: it tests on its part, and validates and trains on scripts of the others.

        Args:
            fold: number of the part, from 0.
            validation: the least number of recordings to validate on; all recordings of the last script are taken too.

        Raises:
            ConfigError: there is no such fold, or nothing is left to train on.
        """
        if not 0 <= fold < len(self.parts):
            raise ConfigError(f"There is no fold {fold}; the folds are 0 to {len(self.parts) - 1}.")
        rest = [key for number, part in enumerate(self.parts) if number != fold for key in part]
        groups = _groups(self.scripts, rest)
        random.Random(f"validation/{fold}").shuffle(groups)
        held: list[str] = []
        while groups and len(held) < validation:
            held += groups.pop()
        if not groups:
            raise ConfigError(
                f"Fold {fold} has {len(rest)} recordings besides those it tests on; {validation} for validation leave "
                "none to train on."
            )
        train = tuple(key for group in groups for key in group)
        return Splits(train, tuple(held), self.parts[fold], fold)


def _groups(scripts: Mapping[str, str], keys: Sequence[str]) -> list[list[str]]:
    """Return ``keys`` by script, in the order of the scripts' names."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(scripts[key], []).append(key)
    return [found[script] for script in sorted(found)]
