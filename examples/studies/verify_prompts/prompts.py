"""The corpus: studio recordings of telephone prompts with their exact scripts, in five languages (CC BY-SA).

They are the Debian packages ``asterisk-core-sounds-*``, 8 kHz, one speaker a language. The same key in two languages
is the same prompt.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import unicodedata
import wave
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from bayes_adapters.backbones import cache_folder
from bayes_adapters.backbones._checksums import check_files, files_below
from bayes_adapters.backbones._resources import install_once, say
from bayes_adapters.errors import ConfigError, DataError, unknown_name
from examples.studies.verify_prompts.debian import unpack_packages

LANGUAGES = ("en", "es", "fr", "it", "ru")
ANY_PROMPTS = "BAYES_ADAPTERS_ANY_PROMPTS"
"""The environment variable that allows prompts of another version than Debian's 1.6.1-1."""
_SHA256 = {
    "en": "dbc87afa06ad4ceb5303539da8a5858da87284512527abb22506fb458bec37a8",
    "es": "623ae9e5748b3c16d143c38db45f7a517c2111aa58d9f4d8eab82e059bd86669",
    "fr": "82c22f68150b85f69bbd0e1f6bfddba90eb6999a20957b3aa454f20600282a6f",
    "it": "2008991e6310da75eac7d79a3e3161d24809d8e03900f8e4c7051e949538ea89",
    "ru": "95aa4442f8b302d4a60d457d5e31e32c319efa66af3f4fd4fe2a10813ec01550",
}
"""Of scripts and recordings in version 1.6.1-1, as Debian 12 and 13 have it; see backbones._checksums.digest."""


@dataclass(frozen=True)
class Prompt:
    """One recording and what it says.

    Args:
        key: the prompt's name, the same in every language, for example ``digits/4``.
        text: its script.
        path: the recording, a mono wav file.
        language: one of :data:`LANGUAGES`.
        seconds: how long it lasts.
    """

    key: str
    text: str
    path: Path
    language: str
    seconds: float


@dataclass(frozen=True)
class Splits:
    """Keys of the English prompts for training, validation and test; no script is in two of them.

    Args:
        train: keys to train on.
        validation: keys to choose settings on.
        test: keys to report on.
        seed: what made them.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    seed: int

    def to_json(self) -> str:
        """Return the splits as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Splits:
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(text)
        return cls(tuple(fields["train"]), tuple(fields["validation"]), tuple(fields["test"]), fields["seed"])

    def of(self, key: str) -> tuple[str, ...]:
        """Return the split that ``key`` is in, or an empty tuple."""
        return next((part for part in (self.train, self.validation, self.test) if key in part), ())


class Parts(Protocol):
    """Parts that keys belong to: of :class:`Splits`, or other ones."""

    def of(self, key: str) -> tuple[str, ...]:
        """Return the part that ``key`` is in, or an empty tuple."""
        ...

    def to_json(self) -> str:
        """Return the parts as JSON."""
        ...


def load_prompts(
    languages: Sequence[str] = ("en",), *, min_seconds: float = 0.1, max_seconds: float = 5.0
) -> list[Prompt]:
    """Fetch the prompts once, and list those that are speech of a suitable length.

    What a script puts into (brackets) of any kind describes sounds and is dropped, as are prompts without words or
    without a recording.

    Args:
        languages: some of :data:`LANGUAGES`.
        min_seconds: shortest recording kept, in seconds.
        max_seconds: longest recording kept, in seconds.

    Returns:
        Prompts ordered by language as given, then by key.

    Raises:
        ConfigError: an unknown language.
        DataError: the unpacked packages do not look as expected.
        MissingResourceError: the packages are not in the cache and cannot be fetched, or are not version 1.6.1-1 as
            Debian has it; the environment variable :data:`ANY_PROMPTS` allows others.
    """
    prompts: list[Prompt] = []
    for language in languages:
        if language not in LANGUAGES:
            raise unknown_name("language", language, LANGUAGES)
        scripts, recordings = _locate(_fetch(language), language)
        for key, text in sorted(_parse(gzip.decompress(scripts.read_bytes())).items()):
            path = recordings / f"{key}.wav"
            seconds = _seconds(path) if path.is_file() else 0.0
            if min_seconds <= seconds <= max_seconds:
                prompts.append(Prompt(key, text, path, language, seconds))
    return prompts


def normalise(text: str) -> str:
    """Return the words of a script, lower case, one space apart, without punctuation.

    >>> normalise("Agent  logged OFF.")
    'agent logged off'
    """
    return " ".join(words(text))


def words(text: str) -> list[str]:
    """Return the normalised words of a script, in order; inner apostrophes stay."""
    lowered = unicodedata.normalize("NFKC", text).lower()
    return [match.group().replace("\u2019", "'") for match in WORD.finditer(lowered)]


def make_splits(prompts: Sequence[Prompt], seed: int, *, validation: int = 54, test: int = 130) -> Splits:
    """Split the English prompts so that no normalised script is in two splits.

    Args:
        prompts: any prompts; only the English ones are split.
        seed: of the shuffle.
        validation: recordings for validation.
        test: recordings for test; the rest is for training.

    Returns:
        The splits; recordings with one script stay together.

    Raises:
        ConfigError: the numbers leave nothing to train on.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for prompt in sorted(prompts, key=lambda prompt: prompt.key):
        if prompt.language == "en":
            groups[normalise(prompt.text)].append(prompt.key)
    total = sum(len(keys) for keys in groups.values())
    if validation < 1 or test < 1 or validation + test >= total:
        raise ConfigError(
            f"{total} English prompts cannot give {validation} for validation and {test} for test: each split needs at "
            "least one, and some must remain for training."
        )
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    parts: dict[str, list[str]] = {"test": [], "validation": [], "train": []}
    wanted = {"test": test, "validation": validation, "train": total}
    for text in order:
        name = next(name for name, part in parts.items() if len(part) + len(groups[text]) <= wanted[name])
        parts[name] += groups[text]
    return Splits(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), seed)


_REMARK = re.compile(r"\[[^]]*\]?|<[^>]*>?|\([^)]*\)?")
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")  # letters and digits, with inner apostrophes


def _fetch(language: str) -> Path:
    target = cache_folder() / "prompts" / language
    if not target.is_dir():
        names = [f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-wav"]
        say(f"fetching the Debian packages {' and '.join(names)}, once, into {target}")
        with install_once(target.parent, language) as work:
            unpack_packages(names, work)
            _check(work, language)
    _check(target, language)
    return target


def _check(folder: Path, language: str) -> None:
    """Raise unless scripts and recordings are those that the published numbers were measured with."""
    scripts, recordings = _locate(folder, language)
    if os.environ.get(ANY_PROMPTS):
        return
    files = {f"sounds/{name}": path for name, path in files_below(recordings).items()} | {"scripts": scripts}
    fix = (
        f"Delete {str(folder)!r} to fetch them again. If your distribution has another version of the packages, set "
        f"{ANY_PROMPTS}=1 to use it: results will then differ from the published ones."
    )
    check_files(files, [_SHA256[language]], f"The prompts of language {language!r}", fix, cache_folder())


def _locate(folder: Path, language: str) -> tuple[Path, Path]:
    scripts = sorted(folder.glob(f"usr/share/doc/*/core-sounds-{language}.txt.gz"))
    recordings = sorted(path for path in folder.glob(f"usr/share/asterisk/sounds/{language}_*") if path.is_dir())
    if len(scripts) != 1 or len(recordings) != 1:
        raise DataError(
            f"The unpacked prompts of language {language!r} in {folder} have {len(scripts)} script files and "
            f"{len(recordings)} folders of recordings; one of each is expected. Delete the folder to fetch it again."
        )
    return scripts[0], recordings[0]


def _parse(raw: bytes) -> dict[str, str]:
    """Return key → script of every line ``key: script`` that is speech; ``;`` begins a comment."""
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        content = raw.decode("latin-1")
    return dict(_entries(content))


def _entries(content: str) -> Iterator[tuple[str, str]]:
    for line in content.splitlines():
        key, colon, text = line.partition(":")
        key, text = key.strip(), " ".join(_REMARK.sub(" ", text).split())
        if colon and key and not key.startswith(";") and words(text):
            yield key, text


def _seconds(path: Path) -> float:
    with wave.open(str(path), "rb") as file:
        return file.getnframes() / file.getframerate()
