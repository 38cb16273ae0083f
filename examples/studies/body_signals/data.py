"""Windows of five body signals: loading, checking, standardising within a person, and folds of people.

The data are windows of 30 s of a wrist sensor (Empatica E4), made from the raw recordings of the repository
``italha-d/Stress-Predict-Dataset`` on GitHub (MIT licence): 35 volunteers went through three stressful tasks (Stroop
test, interview, hyperventilation) with rests between them. One NumPy file holds them::

    BVP (N, 1920, 1) 64 Hz   ACC (N, 960, 3) 32 Hz   EDA (N, 120, 1) 4 Hz   TEMP (N, 120, 1) 4 Hz   HR (N, 30, 1) 1 Hz
    y (N,) 0 rest or 1 stress                        subject (N,) number of the person

Windows follow one another without overlap from a person's first heart rate; a window that is partly rest and partly
stress is left out. :mod:`examples.studies.body_signals.windows` makes such a file. The one that the results were
measured on was made elsewhere: its HR and y of person 2 follow this rule from the repository's processed file; how its
other signals were aligned with them is not known.
"""

from __future__ import annotations

import json
import random
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayes_adapters import Frames
from bayes_adapters.backbones import cache_folder
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError

SECONDS = 30
"""Length of a window."""
CLIP = 6.0
"""Standardised samples are limited to ±6 standard deviations of the person: a knock on the sensor is no signal."""


class Modality(NamedTuple):
    """One signal: samples per second, and channels per sample."""

    rate: int
    channels: int

    @property
    def samples(self) -> int:
        """Samples a window."""
        return self.rate * SECONDS


MODALITIES: dict[str, Modality] = {
    "BVP": Modality(64, 1),
    "ACC": Modality(32, 3),
    "EDA": Modality(4, 1),
    "TEMP": Modality(4, 1),
    "HR": Modality(1, 1),
}
"""Blood volume pulse, acceleration, skin conductance, skin temperature, heart rate; the file's names and order."""
DERIVED: dict[str, Modality] = {"HRV": Modality(1, 1), "MOTION": Modality(32, 1)}
"""What :mod:`examples.studies.body_signals.derived` makes: variability of the heart's beats, magnitude of motion."""


@dataclass(frozen=True)
class Signals:
    """N windows of every modality.

    Args:
        values: modality → shape (N, samples, channels), float32.
        labels: shape (N,), int64: 1 is stress.
        people: shape (N,), int64: the person's number.
    """

    values: Mapping[str, Tensor]
    labels: Tensor
    people: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Signals:
        return Signals({k: v[rows] for k, v in self.values.items()}, self.labels[rows], self.people[rows])

    def of(self, people: Sequence[int]) -> Signals:
        """Return the windows of ``people``, in the order of the file."""
        return self[torch.isin(self.people, torch.tensor(people)).nonzero().flatten()]

    def frames(self, modality: str) -> Frames:
        """Return one modality's samples as context frames: values (N, samples, channels), every sample real."""
        values = self.values[modality]
        return Frames(values, torch.ones(values.shape[:2], dtype=torch.bool))

    def standardised(self) -> Signals:
        """Return ``clip((x - mean_p) / std_p, ±6)``: mean and deviation over all of person p's samples of a channel.

        No label is used. A person's level against their own average stays; differences between people go.

        Raises:
            DataError: a channel is constant in all windows of a person.
        """
        out = {name: torch.empty_like(value) for name, value in self.values.items()}
        for person in self.people.unique().tolist():
            rows = self.people == person
            for name, value in self.values.items():
                own = value[rows].double()
                mean, std = own.mean((0, 1)), own.std((0, 1), correction=0)
                if bool((std <= 1e-9 * mean.abs()).any()):
                    raise DataError(
                        f"{name} of person {person} is constant over {int(rows.sum())} windows, so it cannot be "
                        "standardised. Was the sensor off? Leave this person out of the file."
                    )
                out[name][rows] = ((own - mean) / std).clamp(-CLIP, CLIP).float()
        return Signals(out, self.labels, self.people)


def default_path() -> Path:
    """Where the file is looked for when no other is named: ``body_signals/windows.npz`` in the cache folder.

    The cache folder is that of :func:`bayes_adapters.backbones.cache_folder`.
    """
    return cache_folder() / "body_signals" / "windows.npz"


def load(path: Path | None = None) -> Signals:
    """Load and check the windows.

    Args:
        path: the NumPy file; :func:`default_path` when not given.

    Raises:
        MissingResourceError: there is no such file; the message says how to make it.
        DataError: it is no such file, or an array is missing, of a wrong shape, not finite, or out of range.
    """
    path = default_path() if path is None else path
    if not path.is_file():
        raise MissingResourceError(
            f"There is no file {path} of body signals. Clone the GitHub repository italha-d/Stress-Predict-Dataset "
            "(MIT licence) and make it: python -m examples.studies.body_signals.windows Stress-Predict-Dataset. A file "
            "that lies elsewhere is named with --data."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a NumPy .npz file without pickled objects: {error}") from error
    return _checked(arrays, path)


def _checked(arrays: Mapping[str, np.ndarray], path: Path) -> Signals:
    if missing := [name for name in (*MODALITIES, "y", "subject") if name not in arrays]:
        raise DataError(
            f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays) or 'nothing'}. Names are as in the file "
            "that the module's docstring describes, capitals included."
        )
    for name in ("y", "subject"):
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iu":
            given = f"{arrays[name].dtype} of shape {arrays[name].shape}"
            raise DataError(f"{name!r} in {path} must be integers of shape (N,); it is {given}.")
    size = len(arrays["y"])
    if size == 0 or len(arrays["subject"]) != size:
        raise DataError(f"{path} has {size} labels and {len(arrays['subject'])} persons: one of each per window.")
    if strange := sorted(set(np.unique(arrays["y"]).tolist()) - {0, 1}):
        raise DataError(f"'y' in {path} must be 0 (rest) or 1 (stress); it also holds {strange[:8]}.")
    for name, modality in MODALITIES.items():
        wanted = (size, modality.samples, modality.channels)
        if arrays[name].shape != wanted or arrays[name].dtype.kind != "f":
            raise DataError(
                f"{name!r} in {path} must be floating point of shape {wanted} ({SECONDS} s at {modality.rate} Hz); it "
                f"is {arrays[name].dtype} of shape {arrays[name].shape}. Was another sampling rate or window used?"
            )
        finite = np.isfinite(arrays[name]).all((1, 2))
        if not finite.all():
            rows = np.flatnonzero(~finite).tolist()
            raise DataError(
                f"{name!r} in {path} is NaN or infinite in {len(rows)} windows, the first of them {rows[:8]}. Drop "
                "these windows from every array: a gap in the recording is the usual cause."
            )
    values = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in MODALITIES}
    labels, people = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("y", "subject"))
    return Signals(values, labels, people)


@dataclass(frozen=True)
class Fold:
    """People to train on, to choose on and to report on; nobody is in two of these.

    Args:
        train, validation, test: numbers of people, sorted.
        seed: what made the fold.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    seed: int

    def to_json(self) -> str:
        """Return the fold as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Fold:
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(text)
        return cls(tuple(fields["train"]), tuple(fields["validation"]), tuple(fields["test"]), fields["seed"])


def make_fold(people: Sequence[int], seed: int, *, folds: int = 5, validation: int = 5) -> Fold:
    """Return fold ``seed % folds`` of the partition of the people that ``seed // folds`` draws.

    Seeds 0 … folds-1 therefore test every person once; the next ``folds`` seeds do so with another partition.

    Args:
        people: numbers of people; repeats count once.
        seed: which fold, at least 0.
        folds: parts of the partition; one is the test.
        validation: how many of the other people choose settings; the rest train.

    Raises:
        ConfigError: there are too few people, or an option is out of range.

    >>> fold = make_fold(range(10), 1, validation=2)
    >>> len(fold.train), len(fold.validation), len(fold.test)
    (6, 2, 2)
    >>> sorted(p for seed in range(5) for p in make_fold(range(10), seed).test) == list(range(10))
    True
    """
    order = sorted(set(people))
    if seed < 0 or folds < 2 or validation < 1 or len(order) < max(folds, len(order) // folds + validation + 2):
        raise ConfigError(
            f"{len(order)} people cannot be split into {folds} folds with {validation} people for validation and "
            f"somebody left to train on (seed {seed}, which must be at least 0). Ask for fewer, or add people."
        )
    random.Random(f"people/{seed // folds}").shuffle(order)
    test = order[seed % folds :: folds]
    others = [person for person in order if person not in test]
    random.Random(f"validation/{seed}").shuffle(others)
    train, chosen = others[validation:], others[:validation]
    return Fold(tuple(sorted(train)), tuple(sorted(chosen)), tuple(sorted(test)), seed)
