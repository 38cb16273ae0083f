"""Sentiment of utterances: what the files hold, what is refused, splits and subsets."""

from __future__ import annotations

from pathlib import Path

import pytest

from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from examples.studies.meld.data import Meld
from tests.refusals import refuses
from tests.studies.meld.parts import SIZES, dialogue, rows_of, write


def test_the_files_are_read_as_they_are(tmp_path: Path) -> None:
    lines = [('it ’ is, "awful"\nso', "negative"), ("a table", "neutral"), ("joy", "positive")]
    folder = write(tmp_path, test=dialogue("test", 4, lines))
    found = Meld.load(folder).splits
    assert [(u.key, u.group, u.text, u.label) for u in found["test"]] == [
        ("test/4/0", "test/4", lines[0][0], 0),
        ("test/4/1", "test/4", "a table", 1),
        ("test/4/2", "test/4", "joy", 2),
    ]
    assert {name: len({u.group for u in part}) for name, part in found.items()} == {**SIZES, "test": 1}


def test_the_digest_knows_every_byte(tmp_path: Path) -> None:
    folder = write(tmp_path)
    before = Meld.load(folder).digest
    assert Meld.load(folder).digest == before
    path = folder / "dev_sent_emo.csv"
    path.write_bytes(path.read_bytes().replace(b"Ann", b"Bob", 1))
    assert Meld.load(folder).digest != before


def test_a_missing_folder_says_where_to_get_it(tmp_path: Path) -> None:
    with refuses(
        MissingResourceError,
        tmp_path / "nowhere",
        "train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv",
        "GPL-3.0",
        "declare-lab/MELD",
        "--data",
    ):
        Meld.load(tmp_path / "nowhere")
    (write(tmp_path) / "dev_sent_emo.csv").unlink()
    with refuses(MissingResourceError, tmp_path, "dev_sent_emo.csv", "--data"):
        Meld.load(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        ("positive", "happy", ("dev_sent_emo.csv", "'happy'", "negative, neutral")),
        ("Sentiment", "sentiment", ("dev_sent_emo.csv", "'Sentiment'", "'sentiment'")),
        ("joy,", "", ("dev_sent_emo.csv", "Line")),
    ],
)
def test_damaged_files(tmp_path: Path, before: str, after: str, facts: tuple[object, ...]) -> None:
    path = write(tmp_path) / "dev_sent_emo.csv"
    text = path.read_text(encoding="utf-8-sig")
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with refuses(DataError, *facts):
        Meld.load(tmp_path)


def test_more_damaged_files(tmp_path: Path) -> None:
    one = dialogue("dev", 0, [("joy", "positive")])
    with refuses(DataError, "utterance 0", "dialogue 0"):
        Meld.load(write(tmp_path, dev=[*one, *one]))
    with refuses(DataError, "Line 2", "dev_sent_emo.csv"):
        Meld.load(write(tmp_path, dev=[one[0] | {"Utterance": "  "}]))
    path = write(tmp_path) / "dev_sent_emo.csv"
    whole = path.read_text(encoding="utf-8-sig")
    path.write_text(whole.splitlines()[0] + "\n")
    with refuses(DataError, path):
        Meld.load(tmp_path)
    path.write_bytes(whole.replace("is", "’s").encode("cp1252"))
    with refuses(DataError, path, "UTF-8"):
        Meld.load(tmp_path)


def test_a_dialogue_in_two_splits_is_refused(tmp_path: Path) -> None:
    copy = [row | {"Dialogue_ID": "99"} for row in rows_of("train") if row["Dialogue_ID"] == "3"]
    with refuses(DataError, "train/3", "test/99"):
        Meld.load(write(tmp_path, test=[*rows_of("test"), *copy]))
    # Equal words in another episode are another dialogue, and a number means nothing across files.
    other = [row | {"Dialogue_ID": "99", "Season": "8"} for row in copy]
    assert Meld.load(write(tmp_path, test=[*rows_of("test"), *other])).dropped == ()


def test_a_moment_that_two_splits_share_stays_in_the_later_one(tmp_path: Path) -> None:
    rows = rows_of("test")
    shared = [row for row in rows if row["Dialogue_ID"] == "5"][1] | {"Dialogue_ID": "50", "EndTime": "0:7"}
    found = Meld.load(
        write(tmp_path, train=[*rows_of("train"), shared], dev=[*rows_of("dev"), shared | {"EndTime": "0:8"}])
    )
    assert set(found.dropped) == {"train/50/1", "dev/50/1"}
    assert len(found.splits["test"]) == len(rows)
    assert not {u.key for part in found.splits.values() for u in part} & set(found.dropped)


def test_subsets(meld: Meld) -> None:
    first, again, other = (meld.sample("train", 40, seed) for seed in (0, 0, 1))
    assert first == again
    assert len({u.key for u in first}) == 40
    assert {u.key for u in first} != {u.key for u in other}
    assert meld.sample("train", None, 3) == list(meld.splits["train"])
    with refuses(ConfigError, "'train'", 4000):
        meld.sample("train", 4000, 0)
    part = meld.dialogues("test", 15)
    groups = {u.group for u in part}
    assert 15 <= len(part) < 20, "dialogues have at most five utterances"
    assert part == [u for u in meld.splits["test"] if u.group in groups], "whole dialogues, in order"
    with refuses(ConfigError, "'test'", 0):
        meld.dialogues("test", 0)
