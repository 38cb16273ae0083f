"""How long a script takes to say: measured times, splits, batches, scores by hand, the line and the command."""

from __future__ import annotations

import math
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Prediction
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta
from bayes_adapters.likelihoods import Gaussian
from bayes_adapters.models import LoRA
from examples.studies.speaking_time.data import Data, Spoken, shortened, speech_seconds
from examples.studies.speaking_time.experiment import QUICK, Settings
from examples.studies.speaking_time.one_seed import command
from examples.studies.speaking_time.task import Task, by_length, line, log_seconds, repeat_sd
from examples.studies.verify_prompts.prompts import load_prompts
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")


def write(path: Path, samples: torch.Tensor, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((samples * 32767).to(torch.int16).numpy().tobytes())
    return path


def tone(seconds: float, level: float = 0.5) -> torch.Tensor:
    return level * torch.sin(torch.arange(round(8000 * seconds)) * (2 * math.pi * 400 / 8000))


def spoken(*rows: tuple[str, float]) -> tuple[Spoken, ...]:
    return tuple(Spoken(str(i), text, seconds) for i, (text, seconds) in enumerate(rows))


def padding(batches: Sequence[Batch]) -> float:
    masks = [batch.inputs["attention_mask"] for batch in batches]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_times_are_those_of_the_recordings(prompts: Data) -> None:
    paths = {prompt.key: prompt.path for prompt in load_prompts(("en",))}
    rows = (*prompts.train, *prompts.validation, *prompts.test)
    assert sorted(row.key for row in rows) == sorted(paths)
    cut = []
    for row in rows:
        with wave.open(str(paths[row.key]), "rb") as file:
            whole = file.getnframes() / file.getframerate()
        assert 0.15 <= row.seconds <= whole, row
        cut.append(whole - row.seconds)
    assert max(cut) < 0.75
    assert sorted(cut)[len(cut) // 2] == pytest.approx(0.16, abs=0.005)  # what the module says of the silence


def test_no_script_is_in_two_splits(prompts: Data) -> None:
    parts = [{row.script for row in part} for part in (prompts.train, prompts.validation, prompts.test)]
    assert [len(part) for part in (prompts.train, prompts.validation, prompts.test)] == [318, 54, 130]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert list(prompts.elsewhere) == ["en-long", "es", "fr", "it", "ru", "docstrings"]
    for kind, texts in prompts.elsewhere.items():
        assert len(set(texts)) == 24, kind
        assert not {row.script for row in spoken(*((text, 1.0) for text in texts))} & set.union(*parts), kind


def test_silence_at_both_ends_does_not_count(tmp_path: Path) -> None:
    pause, quiet = torch.zeros(2400), tone(0.3, 0.5 * 10 ** (-60 / 20))
    samples = torch.cat([pause, quiet, tone(0.5), pause, tone(0.1, 0.1), quiet, pause])
    assert speech_seconds(write(tmp_path / "a.wav", samples)) == pytest.approx(0.5 + 0.3 + 0.1)
    assert speech_seconds(tmp_path / "a.wav", quiet=-70.0) == pytest.approx(0.5 + 0.3 + 0.1 + 2 * 0.3)


@pytest.mark.parametrize(
    ("samples", "channels", "facts"),
    [
        (torch.zeros(800), 1, ("a.wav",)),
        (torch.zeros(0), 1, ("a.wav",)),
        (tone(0.2), 2, ("a.wav", "2 channels", "16 bits")),
    ],
)
def test_recordings_that_cannot_be_measured(
    samples: torch.Tensor, channels: int, facts: tuple[object, ...], tmp_path: Path
) -> None:
    with refuses(DataError, *facts):
        speech_seconds(write(tmp_path / "a.wav", samples, channels))


def test_shortened(prompts: Data) -> None:
    few = shortened(prompts, 30)
    assert [len(part) for part in (few.train, few.validation, few.test)] == [30, 10, 10]
    assert few.train[0] == prompts.train[0]
    assert set(few.test) < set(prompts.test)
    assert shortened(prompts, 10_000) == prompts
    with refuses(DataError, 2):
        shortened(prompts, 2)


def test_variance_across_draws(task: Task) -> None:
    parts = [torch.zeros(2)] * 4
    found = Prediction(*parts, 2, samples=torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    assert task.variance(found).tolist() == pytest.approx([task.spread**2, 0.0])
    with refuses(DataError, "return_samples=True"):
        task.variance(Prediction(*parts, 2))


def test_controls_without_a_network() -> None:
    rows = spoken(*(("x" * n, 0.3 * n**0.8) for n in (1, 2, 5, 9, 20)))
    lawful = Data(rows, (), spoken(("y" * 12, 0.3 * 12**0.8)), {})
    assert line(lawful).rmse == pytest.approx(0.0, abs=1e-9)
    twice = Data(spoken(("Hello.", 1.0), ("hello", math.e)), spoken(("once", 7.0)), (), {})
    assert repeat_sd(twice) == pytest.approx(math.sqrt(0.5))


def test_the_density_of_the_line(prompts: Data) -> None:
    found = line(prompts)
    test = by_length(prompts.test)
    torch.testing.assert_close(found.error, found.mean - log_seconds(test))
    shifted = [Spoken(row.key, row.text, row.seconds * 2) for row in prompts.test]
    moved = line(Data(prompts.train, (), tuple(shifted), {}))
    torch.testing.assert_close(moved.mean, found.mean)  # test times are not looked at
    # The constant and the log span each other's errors: training residuals have mean 0 and the sd of the density.
    fitted = line(Data(prompts.train, (), prompts.train, {}))
    assert float(fitted.error.mean()) == pytest.approx(0.0, abs=1e-9)
    assert fitted.nll == pytest.approx(0.5 * (math.log(2 * math.pi) + 1) + math.log(fitted.rmse))


def test_batches_by_length(task: Task) -> None:
    rows = task.data.train
    batches = task.batches(rows, 16, seed=3)
    order = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches) == 20
        order.append(torch.cat([batch.targets for batch in found if batch.targets is not None]))
    assert not torch.equal(order[0], order[1])
    assert torch.equal(order[0], order[2])
    expected = (log_seconds(rows) - task.centre) / task.spread
    assert torch.equal(order[0].sort().values, expected.float().sort().values)
    assert float(expected.mean()) == pytest.approx(0.0, abs=1e-9)
    assert padding(found) < 0.35
    assert padding([task.collate(rows[i : i + 16]) for i in range(0, len(rows), 16)]) > 0.45


def test_scores_are_in_units_of_log_seconds(task: Task) -> None:
    model = LoRA(task.copy(), Gaussian(-1.0), rank=1)
    rows = task.data.validation[:9]
    found = task.measure(model, Delta(model), rows, num_samples=1)
    truth = log_seconds(by_length(rows))
    expected = torch.distributions.Normal(found.mean, task.spread * math.exp(-1.0)).log_prob(truth)
    assert found.nll == pytest.approx(-float(expected.mean()), abs=1e-5)
    assert found.rmse == pytest.approx(float((found.mean - truth).square().mean().sqrt()))
    assert float(found.variance.max()) == 0.0


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    def run(settings: Any, **options: Any) -> None:
        seen.append((settings, options))
        if options["seed"] == 7:
            raise ConfigError("there is no seven")

    assert command(run, "text", ["--quick", "--out", str(tmp_path)]) == 0
    assert command(run, "text", ["--seed", "7"]) == 2
    assert seen == [(QUICK, {"seed": 0, "out": tmp_path}), (Settings(), {"seed": 7, "out": None})]
    assert "error: there is no seven" in capsys.readouterr().err
