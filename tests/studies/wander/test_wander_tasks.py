"""Body signals as two tasks, the streams that are derived, and scripts as two streams."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bayes_adapters import Batch, Frames
from bayes_adapters.guides import Delta
from examples.studies.body_signals.data import MODALITIES, load
from examples.studies.body_signals.derived import variability, with_derived
from examples.studies.wander.body import Body, WindowBatches, others
from examples.studies.wander.script import Texts, TwoStreams
from examples.studies.wander.variants import TASKS, VARIANTS
from tests.studies.body_signals.parts import SETTINGS, arrays


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "windows.npz"
    np.savez(path, **arrays())
    return path


@pytest.fixture(scope="module")
def matched(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Body:
    return Body.load("matched", 0, file, fold=SETTINGS, encoders=tmp_path_factory.mktemp("encoders"))


def test_each_motion_is_as_often_right_as_wrong_and_nothing_else_tells(matched: Body) -> None:
    part = matched.test(True, "all")
    batch = part.batches[0]
    half = len(part.names) // 2
    assert part.labels.tolist() == [1] * half + [0] * half
    for name in MODALITIES:
        first, second = batch.inputs[f"{name}.signal"].split(half)
        assert torch.equal(first, second) is (name != "ACC")
    assert len(set(part.names)) == len(part.names)


def test_a_swapped_motion_is_of_another_window_of_the_same_person(matched: Body) -> None:
    windows = matched.task.signals["train"]
    data = WindowBatches(windows, 16, 0.0, True, 0)
    data.set_epoch(1)
    labels = torch.cat([b.targets for b in data if isinstance(b.targets, torch.Tensor)])
    assert 0.3 < float(labels.mean()) < 0.7
    for batch in data:
        own = (batch.inputs["ACC.signal"] == windows.values["ACC"][batch.ids]).all((1, 2))
        assert torch.equal(own, batch.targets == 1)
        assert torch.equal(batch.inputs["BVP.signal"], windows.values["BVP"][batch.ids])
    people = torch.tensor([3, 5, 3, 5, 3])
    drawn = others(people, torch.Generator().manual_seed(0))
    assert torch.equal(people[drawn], people)
    assert not (drawn == torch.arange(5)).any()


@pytest.mark.parametrize("name", [name for name in TASKS["stress"] if not VARIANTS[name].encoded])
def test_variants_that_adapt_encoders_are_built_on_them(name: str, matched: Body) -> None:
    model = VARIANTS[name].build(matched, matched.encoders(False))
    batch = matched.test(False, "all").batches[0][:2]
    assert model(batch).shape[0] == len(batch.ids)
    assert Delta(model) is not None


def test_conditions_withhold_one_stream_or_all_but_one(file: Path, tmp_path: Path) -> None:
    few = Body.load("stress-quarter", 0, file, fold=SETTINGS, encoders=tmp_path)
    batch = few.test(True, "only-EDA").batches[0]
    assert {key.partition(".")[0] for key in batch.inputs} == {"EDA"}
    batch = few.test(True, "without-EDA").batches[0]
    assert {key.partition(".")[0] for key in batch.inputs} == set(MODALITIES) - {"EDA"}
    assert [few.summary(c) for c in ("all", "only-EDA", "without-HR")] == ["all", "only-1", "without-1"]
    people = few.task.signals["train"].people.unique()
    assert len(people) == 2
    assert set(people.tolist()) <= set(few.task.fold.train)


def test_variability_is_the_change_of_the_time_between_beats(file: Path) -> None:
    time = torch.arange(1920) / 64
    beats = torch.arange(40).div(2, rounding_mode="floor") * 1.8 + torch.arange(40).remainder(2) * 0.8  # 0.8 s and 1 s
    pulse = (-((time[:, None] - beats) / 0.05).square()).exp().sum(1)
    found = variability(pulse[None, :, None])
    assert found.shape == (1, 30, 1)
    assert bool((found - 0.2).abs().max() < 0.02)
    assert not variability(torch.zeros(1, 1920, 1)).any()
    signals = with_derived(load(file))
    torch.testing.assert_close(signals.values["MOTION"][..., 0], signals.values["ACC"].square().sum(-1).sqrt())


class Counted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        self.rows += len(input_ids)
        return SimpleNamespace(last_hidden_state=input_ids[..., None] * torch.ones(4))


def test_scripts_become_a_stream_and_each_runs_once() -> None:
    ids, mask = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    audio = Frames(torch.randn(2, 3, 8), torch.tensor([[True, True, False], [False] * 3]))
    batch = Batch({"input_ids": ids, "attention_mask": mask}, torch.tensor([1.0, 0.0]), {"audio": audio})
    encoder = Counted()
    streams = TwoStreams([batch], Texts(encoder))  # type: ignore[arg-type]
    for _ in range(2):
        inputs = next(iter(streams)).inputs
        assert torch.equal(inputs["text.signal"][..., 0], ids * mask)
    assert encoder.rows == 2
    assert torch.equal(inputs["text.token_mask"], mask.bool())
    assert torch.equal(inputs["audio.signal"], audio.values)
    assert torch.equal(inputs["audio.token_mask"], audio.mask)
    plain = TwoStreams([batch], None).convert(batch).inputs  # type: ignore[arg-type]
    assert set(plain) == {"text.input_ids", "text.attention_mask", "audio.signal", "audio.token_mask"}
