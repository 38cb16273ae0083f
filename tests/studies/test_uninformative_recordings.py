"""The study of recordings that say nothing: whose recording is heard, what is withheld, and the table."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from examples.studies import uninformative_recordings as study
from examples.studies.few_labels.task import split
from examples.studies.meld.data import Utterance
from examples.studies.uninformative_recordings import METHODS, RECORDINGS, TEXT, Heard, Result
from examples.studies.verify_prompts.prompts import Prompt
from tests.helpers import bert
from tests.studies.meld.parts import VOCABULARY, Tokenizer

SIZES = {"train": 12, "held": 8}


@pytest.fixture(scope="module")
def data() -> Heard:
    """Thirty scripts; frame 0 of recording n is n."""
    said = [Utterance(f"vm-{n}", f"vm-{n}", VOCABULARY[n % len(VOCABULARY)], n % 4) for n in range(30)]
    frames = [torch.full((2 + n % 3, 6), float(n)) for n in range(30)]
    return Heard(said, Tokenizer(), split(bert(3), 2)[0], frames)


def test_every_prompt_hears_its_own_recording_or_that_of_another(data: Heard) -> None:
    for recording in RECORDINGS:
        drawn = study.parts(data, 0, recording, **SIZES)
        assert [len(part) for part in drawn] == [12, 8, 10]
        keys = [one.key for part in drawn for one in part.utterances]
        assert sorted(keys) == sorted(one.key for one in data.utterances), "no prompt is in two parts"
        for part in drawn:
            own = [int(one.key.split("-")[1]) for one in part.utterances]
            heard = [int(frames[0, 0]) for frames in part.frames]
            assert sorted(own) == sorted(heard), "the recordings of a part are those of its prompts"
            assert [a == b for a, b in zip(own, heard, strict=True)] == [recording == "own"] * len(own)
            batch = part.batch([1, 0])
            assert batch.context["audio"].values[:, 0, 0].tolist() == [heard[1], heard[0]]
            assert batch.context["audio"].mask.sum(1).tolist() == [2 + heard[1] % 3, 2 + heard[0] % 3]
    again, other = (study.parts(data, seed, "another", **SIZES).train.utterances for seed in (0, 1))
    assert [u.key for u in again] == [u.key for u in study.parts(data, 0, "own", **SIZES).train.utterances]
    assert [u.key for u in again] != [u.key for u in other]


def test_half_of_the_words_are_withheld_and_a_script_counts_once() -> None:
    text = "please enter your agent number now"
    kept = study.withheld(text, "vm-a").split()
    assert len(kept) == 3
    assert kept == [word for word in text.split() if word in kept]
    assert {study.withheld("seven", str(n)) for n in range(20)} == {"seven", "…"}
    names = {"vm-a": "Goodbye", "vm-b": "goodbye.", "digits/4": "four", "letters/a": "a", "agent-x": "off"}
    prompts = [Prompt(key, said, Path(), "en", 1.0) for key, said in names.items()]
    found = study.scripts([*prompts, Prompt("vm-c", "adieu", Path(), "fr", 1.0)])
    assert [(one.key, one.label) for one in found] == [("vm-a", 2), ("digits/4", 0), ("letters/a", 1)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_method_is_trained_gated_and_kept(
    data: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "load", lambda: (data, split(bert(3), 2)[1]))
    monkeypatch.setattr(study, "TRAIN", 12)
    monkeypatch.setattr(study, "HELD", 8)
    page = tmp_path / "page.md"
    page.write_text("<!-- uninformative_context -->\n<!-- /uninformative_context -->\n")
    command = ["--seeds", "3", "--epochs", "1", "--records", str(tmp_path / "kept.json"), "--page", str(page)]
    assert study.main(command) == 0
    kept = study.read(tmp_path / "kept.json")
    assert [(r.method, r.recording) for r in kept] == [(m, r) for r in RECORDINGS for m in METHODS]
    assert all(math.isnan(r.gate) == (not METHODS[r.method][1]) and 0.5 < r.nll < 4.0 for r in kept)
    once = page.read_text()
    monkeypatch.setattr(study, "load", lambda: pytest.fail("what is there is not trained again"))
    assert study.main(command) == 0
    assert page.read_text() == once
    assert "behind a gate" in once
    capsys.readouterr()


def test_the_table_has_differences_to_text_alone() -> None:
    gated = "CALIBER-X behind a gate"
    results = [
        Result(method, seed, recording, 1.0 + 0.1 * seed + extra * (1 + seed), 0.5, gate)
        for recording in RECORDINGS
        for seed in (0, 1)
        for method, extra, gate in ((TEXT, 0.0, math.nan), (gated, -0.1, 0.5 * seed))
    ]
    others = [Result(m, s, r, 2.0, 0.5, math.nan) for m in METHODS for s in (0, 1) for r in RECORDINGS]
    shown = study.table([*results, *(r for r in others if r.method not in (TEXT, gated))])
    assert shown[2].startswith(f"| {TEXT} | 1.050 | – |")
    assert f"| {gated} | −0.150 ± 0.050 | 1 of 2 |" in "\n".join(shown)
