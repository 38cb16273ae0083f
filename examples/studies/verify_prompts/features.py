"""Frozen Whisper frames of the prompts, encoded once and kept on disk.

One folder a (language, condition, draw): ``frames.safetensors`` holds all frames one after another, float16, and
``index.json`` says which rows belong to which prompt. The folder's name holds a fingerprint of everything it was made
from (encoder, recordings, condition, seed), so a changed setting makes a new file and never reuses a stale one.

    python -m examples.studies.verify_prompts.features --languages en --conditions clean white@10 babble@0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayes_adapters.backbones import cache_folder, speech_encoder
from bayes_adapters.backbones._resources import install_once, say
from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import DataError, near_matches
from bayes_adapters.speech.audio import read_audio
from bayes_adapters.speech.corruption import Condition, corrupt
from bayes_adapters.speech.verify import as_stored
from examples.studies.user_errors import user_errors
from examples.studies.verify_prompts.prompts import LANGUAGES, Parts, Prompt, load_prompts, make_splits

FORMAT = 2  # counts up when the same recordings make other numbers: 2 resamples without torchaudio
POOL = 2  # 50 positions a second become 25 frames
TALKERS = 6  # recordings in a babble

SNRS = (20, 10, 5, 0, -5)
CONDITIONS = ("clean", *(f"white@{s}" for s in SNRS), *(f"babble@{s}" for s in SNRS), "reverb", "clip")


class Encoder(Protocol):
    """What makes frames of waveforms; :class:`~bayes_adapters.backbones.SpeechEncoder` is one."""

    @property
    def width(self) -> int:
        """d, the size of one frame."""
        ...

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that change whenever the frames would."""
        ...

    def __call__(self, waves: Sequence[Float[Tensor, " _"]], *, pool: int) -> Frames:
        """Encode waveforms of 16 kHz, averaging ``pool`` neighbouring frames."""
        ...


class FrameStore:
    """Frames by language, condition and key; what is absent is encoded on first use, one whole part at a time.

    Args:
        prompts: the prompts of every language that will be asked for.
        splits: English babble is made of prompts of the recording's own split, or other part, only.
        encoder: the frozen encoder; loaded with ``speech_encoder()`` when not given.
        seed: of all corruptions.
        root: where the parts lie; ``frames`` in the cache folder when not given.
        batch_size: recordings encoded at once.
        pool: how many of the encoder's frames are averaged.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        splits: Parts,
        *,
        encoder: Encoder | None = None,
        seed: int = 0,
        root: Path | None = None,
        batch_size: int = 16,
        pool: int = POOL,
    ) -> None:
        self._prompts: dict[str, dict[str, Prompt]] = {}
        for prompt in prompts:
            self._prompts.setdefault(prompt.language, {})[prompt.key] = prompt
        self._splits, self._seed, self._batch_size, self._pooled = splits, seed, batch_size, pool
        self.encoder: Encoder = encoder or speech_encoder()
        self._root = root or cache_folder() / "frames"
        self._open: dict[tuple[str, str, int], _Part] = {}
        self._corpus_prints: dict[str, str] = {}

    @property
    def width(self) -> int:
        """d, the size of one frame."""
        return self.encoder.width

    def with_encoder(self, encoder: Encoder, pool: int) -> FrameStore:
        """Return a store of the same recordings, encoded by another encoder, in the same folder."""
        prompts = [prompt for own in self._prompts.values() for prompt in own.values()]
        options: dict[str, Any] = {"seed": self._seed, "root": self._root, "batch_size": self._batch_size}
        return FrameStore(prompts, self._splits, encoder=encoder, pool=pool, **options)

    def length(self, language: str, condition: str, key: str, draw: int = 0) -> int:
        """Return how many frames :meth:`get` would return, without reading them. Arguments as there."""
        return self._part(language, condition, draw).length(self._find(language, key).key)

    def get(self, language: str, condition: str, key: str, draw: int = 0) -> Float[Tensor, "S d"]:
        """Return one recording's frames, 25 per second.

        Args:
            language: one of the languages of ``prompts``.
            condition: for example ``clean``, ``white@10``; see :class:`~bayes_adapters.speech.corruption.Condition`.
            key: the prompt.
            draw: which of several independent draws of the noise; of no effect where nothing is random.

        Returns:
            Shape (S, d), float32 (stored as float16), S = recording's length × 25 rounded up.

        Raises:
            ConfigError: the condition is unknown.
            DataError: the language or the key is not among the prompts.
        """
        return self._part(language, condition, draw)[self._find(language, key).key]

    def build(self, languages: Collection[str], conditions: Collection[str], draws: int = 1) -> None:
        """Encode every part that is absent.

        Args:
            languages: which languages.
            conditions: which conditions.
            draws: how many draws of each; ``clean`` and ``clip`` have one.
        """
        for language in languages:
            for condition in conditions:
                for draw in range(draws if _is_random(Condition.parse(condition)) else 1):
                    self._part(language, condition, draw)

    def absent(self, language: str, condition: str, draw: int = 0) -> int:
        """Return how many recordings the first use of this part would encode: all or none of them."""
        return 0 if self._folder(language, condition, draw)[0].is_dir() else len(self._prompts[language])

    def encode(
        self, language: str, condition: str, draw: int = 0, advance: Callable[[int], None] | None = None
    ) -> None:
        """Encode a part unless it is on disk; ``advance`` is called with the number of recordings of each batch."""
        self._part(language, condition, draw, advance)

    def corrupted(self, language: str, condition: str, key: str, draw: int = 0) -> Float[Tensor, " N"]:
        """Return the waveform the frames are made from: shape (N,), float32, 16 kHz. Arguments as in :meth:`get`."""
        prompt, parsed = self._find(language, key), Condition.parse(condition)
        name = f"{self._seed}/{language}/{parsed}/{draw}/{key}"
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        others: list[Tensor] = []
        if parsed.kind == "babble":
            pool = [other for other in self._pool(language, key) if other != key]
            if not pool:
                raise DataError(f"There is no other recording of {language!r} to make babble of beside {key!r}.")
            chosen = random.Random(number).sample(pool, min(TALKERS, len(pool)))
            others = [_read(self._prompts[language][other].path) for other in chosen]
        generator = torch.Generator().manual_seed(number)
        return corrupt(_read(prompt.path), parsed, generator, others=others)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def _find(self, language: str, key: str) -> Prompt:
        if language not in self._prompts:
            raise DataError(f"The store has no prompts of language {language!r}; it has {sorted(self._prompts)}.")
        prompts = self._prompts[language]
        if key not in prompts:
            raise DataError(
                f"There is no {language!r} prompt {key!r} among {len(prompts)}.{near_matches(key, prompts)}"
            )
        return prompts[key]

    def _pool(self, language: str, key: str) -> list[str]:
        present = self._prompts[language]
        return sorted(present if language != "en" else (other for other in self._splits.of(key) if other in present))

    def _part(self, language: str, condition: str, draw: int, advance: Callable[[int], None] | None = None) -> _Part:
        draw = draw if _is_random(Condition.parse(condition)) else 0
        name = (language, condition, draw)
        if name not in self._open:
            folder, fingerprint = self._folder(language, condition, draw)
            if not folder.is_dir():
                self._encode(folder, language, condition, draw, fingerprint, advance)
            self._open[name] = _Part(folder, fingerprint)
        return self._open[name]

    def _folder(self, language: str, condition: str, draw: int) -> tuple[Path, str]:
        """Where a part lies, and the fingerprint of what it is made from."""
        draw = draw if _is_random(Condition.parse(condition)) else 0
        if language not in self._prompts:
            raise DataError(f"The store has no prompts of language {language!r}; it has {sorted(self._prompts)}.")
        fingerprint = self._fingerprint(language, condition, draw)
        return self._root / f"{language}-{Condition.parse(condition)}-{draw}-{fingerprint[:16]}", fingerprint

    def _fingerprint(self, language: str, condition: str, draw: int) -> str:
        parsed = Condition.parse(condition)
        settings: dict[str, Any] = {
            "format": FORMAT,
            "encoder": self._encoder_print,
            "pool": self._pooled,
            "corpus": self._corpus_print(language),
            "condition": str(parsed),
        }
        if _is_random(parsed):
            settings |= {"draw": draw, "seed": self._seed}
        if parsed.kind == "babble":
            settings |= {"talkers": TALKERS, "splits": self._splits.to_json() if language == "en" else ""}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _encoder_print(self) -> str:
        return self.encoder.fingerprint()

    def _corpus_print(self, language: str) -> str:
        if language in self._corpus_prints:
            return self._corpus_prints[language]
        digest = hashlib.sha256()
        for key, prompt in sorted(self._prompts[language].items()):
            digest.update(key.encode() + b"\0" + hashlib.sha256(prompt.path.read_bytes()).digest())
        self._corpus_prints[language] = digest.hexdigest()
        return self._corpus_prints[language]

    def _encode(
        self,
        folder: Path,
        language: str,
        condition: str,
        draw: int,
        fingerprint: str,
        advance: Callable[[int], None] | None,
    ) -> None:
        start = time.monotonic()
        rows: dict[str, tuple[int, int]] = {}
        pieces: list[Tensor] = []
        total = len(self._prompts[language])
        end = 0
        for keys in _chunks(sorted(self._prompts[language]), self._batch_size):
            frames = self.encoder([self.corrupted(language, condition, key, draw) for key in keys], pool=self._pooled)
            for key, values, mask in zip(keys, frames.values, frames.mask, strict=True):
                piece = as_stored(values[mask]).cpu()
                rows[key] = (end, end + len(piece))
                end += len(piece)
                pieces.append(piece)
            if advance is not None:
                advance(len(keys))
            elif len(pieces) % (10 * self._batch_size) == 0:
                say(f"encoding {folder.name}: {len(pieces)} of {total} recordings, {time.monotonic() - start:.0f} s")
        with install_once(folder.parent, folder.name) as work:
            (work / "index.json").write_text(json.dumps({"fingerprint": fingerprint, "rows": rows}))
            save_file({"frames": torch.cat(pieces)}, work / "frames.safetensors", {"fingerprint": fingerprint})
            # safetensors makes files that their owner alone may read; a shared cache is the group's as umask says
            shutil.copymode(work / "index.json", work / "frames.safetensors")
        if advance is None:
            say(f"encoded {folder.name}: {total} recordings, {end} frames, {time.monotonic() - start:.1f} s")


class _Part:
    """One file of frames; rows are read when they are asked for."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        index = json.loads((folder / "index.json").read_text())
        self._file = safe_open(folder / "frames.safetensors", "pt")
        if index["fingerprint"] != fingerprint or (self._file.metadata() or {}).get("fingerprint") != fingerprint:
            raise DataError(
                f"The frames in {folder} were made with other settings. Delete the folder; they are made again."
            )
        self._frames = self._file.get_slice("frames")
        self._rows: dict[str, list[int]] = index["rows"]

    def length(self, key: str) -> int:
        start, stop = self._rows[key]
        return stop - start

    def __getitem__(self, key: str) -> Float[Tensor, "S d"]:
        start, stop = self._rows[key]
        frames: Tensor = self._frames[start:stop]
        return frames.float()


def _is_random(condition: Condition) -> bool:
    return condition.kind not in {"clean", "clip"}


@lru_cache(maxsize=1024)  # about 100 MB: babble reads every recording many times
def _read(path: Path) -> Tensor:
    return read_audio(path)


def _chunks(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


@user_errors
def main() -> int:
    """Encode parts from the command line."""
    parser = argparse.ArgumentParser(description="Encode the prompts once into the cache.")
    parser.add_argument("--languages", nargs="+", default=["en"], choices=LANGUAGES)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS))
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the splits and the corruptions")
    arguments = parser.parse_args()
    prompts = load_prompts(sorted({"en", *arguments.languages}))
    store = FrameStore(prompts, make_splits(prompts, arguments.seed), seed=arguments.seed)
    store.build(arguments.languages, arguments.conditions, arguments.draws)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
