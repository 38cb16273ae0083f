"""Clips and sounding scenes, of tones and made strokes: no network."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bayes_adapters import Frames
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from examples.av_events import probe
from examples.av_events.data import PARTS, Sizes, fold, splits
from examples.av_events.digits import strokes
from examples.av_events.encoders import inputs
from examples.av_events.events import BACKGROUND, _plan, make_clips
from examples.av_events.pretrain import SETTINGS, draw
from examples.av_events.recordings import load, tones
from examples.av_events.sheet import sheet
from examples.av_events.sounding import make_sounding
from examples.av_events.sounds import NOISE
from examples.grounding.vision import VisionSettings
from tests.refusals import refuses

TONES, STROKES = tones(), strokes()


def test_an_event_is_where_both_agree() -> None:
    clips = make_clips(TONES, STROKES, 20, seed=0)
    labels = clips.labels
    for heard, seen, label in zip(clips.heard.tolist(), clips.seen.tolist(), labels.tolist(), strict=True):
        agree = [a == b and a >= 0 for a, b in zip(heard, seen, strict=True)]
        assert label == [a if same else BACKGROUND for a, same in zip(heard, agree, strict=True)]
        event = [i for i, same in enumerate(agree) if same]
        assert 2 <= len(event) == event[-1] - event[0] + 1 <= 8
        assert len({heard[i] for i in event}) == 1
    outside = labels == BACKGROUND
    states = torch.stack([clips.heard >= 0, clips.seen >= 0])[:, outside].long()
    counted = torch.bincount(2 * states[0] + states[1], minlength=4) / states.shape[1]
    torch.testing.assert_close(counted, torch.tensor([1, 1, 1, 3]) / 6, atol=0.12, rtol=0.0)


def test_one_modality_does_not_tell() -> None:
    """Where a digit is heard, or seen, six of ten are an event; the others have any digit."""
    segments = [pair for seed in range(300) for pair in _plan(random.Random(seed))]
    for one, other in ((0, 1), (1, 0)):
        there = [pair for pair in segments if pair[one] is not None]
        event = [pair for pair in there if pair[one] == pair[other]]
        assert len(event) / len(there) == pytest.approx(0.6, abs=0.03)
        assert {pair[one] for pair in there if pair not in event} == set(range(10))


def test_sound_is_the_recording_and_noise() -> None:
    clips = make_clips(TONES, STROKES, 4, seed=0)
    waves = clips.sounds.waves(torch.arange(4))
    assert waves.shape == (4, 10, 16_000)
    for row in range(4):
        for second in range(10):
            number, start = int(clips.sounds.recording[row, second]), int(clips.sounds.start[row, second])
            wave = waves[row, second].clone()
            assert (number >= 0) == (int(clips.heard[row, second]) >= 0)
            if number >= 0:
                assert TONES.digits[number] == int(clips.heard[row, second])
                assert TONES.speakers[number] == clips.speakers[row]
                wave[start : start + 4800] -= TONES.waves[number]
            assert float(wave.std()) == pytest.approx(NOISE, rel=0.05)
    assert torch.equal(clips.sounds.waves(torch.tensor([2]))[0], waves[2])


def test_frames_show_what_is_seen() -> None:
    clips = make_clips(TONES, STROKES, 6, seed=0)
    spread = clips.frames.float().flatten(2).std(-1)
    assert float(spread[clips.seen < 0].max()) < float(spread[clips.seen >= 0].min())


def test_sounding_scenes() -> None:
    some = make_sounding(TONES, STROKES, 20, seed=0)
    masks = some.masks(torch.arange(20))
    for row in range(20):
        digits = some.shown[row]
        assert 2 <= len(set(digits)) == len(digits) <= 4
        assert digits[int(some.target[row])] == int(some.digits[row]) == TONES.digits[int(some.sounds.recording[row])]
        assert sorted(some.owner[row].unique().tolist()) == list(range(len(digits) + 1))
        assert torch.equal(masks[row], some.owner[row] == int(some.target[row]) + 1)
        assert 10 < int(masks[row].sum()) < 900


def test_splits_share_nobody_and_no_picture() -> None:
    sizes = Sizes(3, 2, 2, 3, 2, 2)
    made = splits(TONES, STROKES, 0, sizes)
    assert [split.people for split in made.values()] == [("c",), ("b",), ("a",)]
    for split in made.values():
        assert set(split.clips.speakers) | set(split.sounding.speakers) == set(split.people)
    tested = [fold(("a", "b", "c", "d"), seed) for seed in range(4)]
    assert sorted(person for part in tested for person in part["test"]) == ["a", "b", "c", "d"]
    assert all(not set(part["test"]) & {*part["train"], *part["validation"]} for part in tested)
    marked = strokes(each=10)
    marked.ink[:, 0, 0] = np.arange(100)
    parts = [
        set(part.ink[:, 0, 0]) for part in (marked.part(0, PARTS, 3), marked.part(3, PARTS), marked.part(4, PARTS))
    ]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert len(set.union(*parts)) == 100
    again = splits(TONES, STROKES, 0, sizes)
    assert torch.equal(again["train"].clips.frames, made["train"].clips.frames)
    assert torch.equal(again["test"].sounding.sounds.start, made["test"].sounding.sounds.start)


def test_rows_of_both_encoders() -> None:
    class Speech:
        """Hears a mean per hundredth of a second."""

        def mel(self, waves: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack(waves).reshape(len(waves), 1, 100, 160).mean(-1)

    clips, some = make_clips(TONES, STROKES, 3, seed=0), make_sounding(TONES, STROKES, 3, seed=0)
    given = inputs(clips, torch.tensor([2, 0]), Speech())
    assert given["vision.pixel_values"].shape == (20, 3, 64, 64)
    assert given["audio.input_features"].shape == (20, 1, 100)
    assert torch.equal(given["vision.pixel_values"][13], clips.frames[0, 3].float() / 127.5 - 1)
    assert inputs(some, torch.tensor([1]), Speech())["audio.input_features"].shape == (1, 1, 100)


def test_probes_see_and_hear_what_is_there() -> None:
    """A tiny transformer's tokens and a mean of samples: only the labels are looked at, and that both can be fitted."""
    some = make_sounding(TONES, STROKES, 6, seed=0)
    vit = VisionSettings(64, 8, width=8, layers=1, heads=2).transformer().eval()
    tokens, digits = probe.seen(vit, some, 8)
    assert len(tokens) == len(digits) > 20
    assert set(digits.tolist()) <= {digit for shown in some.shown for digit in shown}  # thin strokes fill no patch
    assert tokens.shape[1] == 8

    def speech(waves: list[torch.Tensor]) -> Frames:
        return Frames(torch.stack(waves).reshape(len(waves), 100, 160), torch.ones(len(waves), 100, dtype=torch.bool))

    means, said = probe.heard(speech, some, batch_size=4)
    assert torch.equal(said, some.digits)
    expected = some.sounds.waves(torch.tensor([5]))[0].reshape(100, 160).mean(0)
    torch.testing.assert_close(means[5], expected)


def test_pretraining_batches() -> None:
    batch = draw(0, written=STROKES, settings=SETTINGS)
    assert batch.scenes.shape == (SETTINGS.batch_size, 3, 64, 64)
    assert set(batch.names.unique().tolist()) == set(range(11))
    assert torch.equal(batch.names, draw(0, written=STROKES, settings=SETTINGS).names)


def write(path: Path, **changes: object) -> Path:
    """A file of four recordings of half a second and less."""
    length = np.array([4000, 3000, 12_000, 100])
    audio = (8000 * np.sin(np.arange(length.sum()) / 3)).astype(np.int16)
    arrays = {"audio": audio, "rate": np.array(8000), "length": length, "digit": np.array([3, 1, 4, 1])}
    arrays |= {"speaker": np.array(["x", "y", "x", "y"]), "take": np.arange(4), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_file_of_recordings(tmp_path: Path) -> None:
    read = load(write(tmp_path / "fsdd.npz"))
    assert [len(wave) for wave in read.waves] == [8000, 6000, 16_000, 200]  # at 16 kHz; one second at most
    assert read.digits == (3, 1, 4, 1)
    assert all(0.05 < float(wave.square().mean().sqrt()) < 0.11 and float(wave.abs().max()) <= 1 for wave in read.waves)
    assert [len(wave) for wave in read.by(["y"]).waves] == [6000, 200]
    assert read.of(1) == [1, 3]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"digit": None}, ["digit"]),
        ({"digit": np.array([3, 1, 4, 11])}, [9]),
        ({"audio": np.zeros(7, np.int16)}, [7, 19_100]),
        ({"speaker": np.array(["x"])}, [4, 1]),
        ({"length": np.array([1.0, 2.0])}, ["length", "float64"]),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, object], facts: list[object]) -> None:
    path = write(tmp_path / "fsdd.npz", **changes)
    with refuses(DataError, path, *facts):
        load(path)


def test_refusals(tmp_path: Path) -> None:
    with refuses(MissingResourceError, tmp_path / "none.npz", "--data"):
        load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no")
    with refuses(DataError, tmp_path / "text.npz"):
        load(tmp_path / "text.npz")
    with refuses(ConfigError, ["z"], ["a", "b", "c"]):
        TONES.by(["a", "z"])
    with refuses(ConfigError, 3, ["a"]):
        fold(("a",), 0)
    with refuses(ConfigError, "count", 0):
        make_clips(TONES, STROKES, 0, seed=0)


def test_sheet() -> None:
    split = splits(TONES, STROKES, 0, Sizes(2, 1, 1, 12, 1, 1))["train"]
    stream = io.BytesIO()
    sheet(split, rows=2).save(stream, "PNG")
    assert stream.tell() > 1000
