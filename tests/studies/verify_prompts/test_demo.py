"""The demo: what it refuses, in which order it works, and what it says meanwhile."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bayes_adapters.errors import MissingResourceError
from examples.studies.verify_prompts import demo
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import evaluate, train, training_steps
from examples.studies.verify_prompts.features import FrameStore
from examples.studies.verify_prompts.methods import METHODS
from tests.studies.verify_prompts.parts import SETTINGS, SIZES

pytestmark = pytest.mark.usefixtures("offline")

HEARS = [name for name, method in METHODS.items() if method.hears]


def ended(methods: list[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the command line where nothing can be fetched."""

    def load() -> Corpus:
        raise MissingResourceError("fetching")

    monkeypatch.setattr(Corpus, "load", load)
    monkeypatch.setattr(demo, "free_threads", lambda most: most)  # other tests' threads stay as they are
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(out), "--device", "cpu", "--methods", *methods])
    return demo.main()


@pytest.mark.parametrize("method", HEARS)
def test_what_verify_cannot_serve_is_refused_before_anything_is_fetched(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended([method, "c-lora"], tmp_path / "out", monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: The demo saves the adapter of the first method")
    assert f"{method} adapts the speech encoder" in said
    assert f"--methods caliber-x {method}." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("methods", [["caliber-x", *HEARS], ["lora-text"]])
def test_what_is_only_compared_may_hear(
    methods: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(methods, tmp_path / "out", monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["error: fetching"]
    assert len(HEARS) == 3


def test_every_part_is_encoded_first_and_the_adapter_saved_before_it_is_measured(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    stores = {name: store.with_encoder(store.encoder, 2) for name, store in corpus.stores.items()}
    for store in stores.values():
        store._root = tmp_path / "frames"
    fresh = replace(corpus, stores=stores)
    monkeypatch.setattr(Corpus, "load", lambda: fresh)
    saved: list[bool] = []

    def measure(*arguments: Any, **options: Any) -> Any:
        saved.append((tmp_path / "out" / "adapter" / "adapter.json").is_file())
        monkeypatch.setattr(FrameStore, "_encode", None)  # what is measured was encoded before
        return evaluate(*arguments, **options)

    monkeypatch.setattr(demo, "evaluate", measure)
    methods = ("caliber-x", "lora-text")
    assert demo.run(tmp_path / "out", methods, 0, SETTINGS, 0.0) == 0
    assert saved == [True, True]
    said = capsys.readouterr().err
    stages = [line for line in said.splitlines() if re.search(r"] \d/7 ", line)]
    assert [re.search(r"(\d)/7", line)[1] for line in stages if "done in" in line] == list("1234567")  # type: ignore[index]
    counted = [re.search(r": ([\d,]+) recordings", line) for line in stages if "encode" in line]
    # clean and white noise of training, validation and test, and the Italian test recordings
    assert int(counted[0][1]) == 2 * sum(SIZES.values()) + SIZES["test"]  # type: ignore[index]
    assert f"train caliber-x: {training_steps(fresh, SETTINGS)} steps" in said
    assert "epoch" not in said, "the stages' lines stand in the place of fit's own"


@pytest.mark.parametrize(
    ("load", "most", "threads"), [(0.1, 4, 4), (0.1, 2, 2), (1.6, 4, 2), (3.9, 4, 1), (9.0, 4, 1), (0.0, 8, 4)]
)
def test_busy_cores_are_left_to_others(monkeypatch: pytest.MonkeyPatch, load: float, most: int, threads: int) -> None:
    monkeypatch.setattr(demo.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(demo.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert demo.free_threads(most) == threads


def test_steps_are_those_that_training_takes(corpus: Corpus) -> None:
    taken: list[int] = []
    train(corpus, "lora-text", 0, replace(SETTINGS, epochs=2), advance=taken.append)
    assert sum(taken) == training_steps(corpus, replace(SETTINGS, epochs=2))
