"""Dev utterances choose how few ranks the pruned row keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters.surgery.export import to_lora
from examples.studies.meld import fewest_ranks, methods
from examples.studies.meld.data import Meld
from examples.studies.meld.experiment import run
from examples.studies.meld.fewest_ranks import Found, acceptable, choose, measure, paired, task_of
from examples.studies.meld.methods import KL_WEIGHTS, PRUNED
from examples.studies.meld.task import Settings, Task
from tests.studies.meld.parts import SETTINGS, Tokenizer, backbone, write

N = 100


def found(ranks: int, wrong: int, worse: float, spread: float = 0.1) -> Found:
    """An adapter that is wrong ``wrong`` times and whose NLL is 1 + ``worse`` on the mean, its halves ± ``spread``."""
    right, nll = torch.ones(N).double(), torch.full((N,), 1 + worse).double()
    right[:wrong] = 0
    nll[::2] += spread
    nll[1::2] -= spread
    return Found(right, nll, {"query": ranks, "value": 1}, 0.0)


LORA = found(7, 0, 0.0, spread=0.0)
LORA.right[-2:] = 0


def test_the_standard_error_is_that_of_pairs() -> None:
    difference, error = paired(found(8, 20, 0.5).right, LORA.right)
    assert difference == pytest.approx(-0.18)
    assert error == pytest.approx(math.sqrt((0.22 - 0.18**2) / (N - 1)))
    assert paired(LORA.nll + 0.3, LORA.nll) == pytest.approx((0.3, 0.0))


@pytest.mark.parametrize(
    ("wrong", "worse", "good"),
    [
        (0, 0.0, True),
        (4, 0.0, True),  # 4 lost and 2 won: −0.02 with a standard error of 0.025
        (6, 0.0, False),  # 6 lost and 2 won: −0.04 with a standard error of 0.028
        (0, 0.0100, True),  # 0.1 / sqrt(99) = 0.01005
        (0, 0.0101, False),
        (0, -0.5, True),
    ],
)
def test_neither_accuracy_nor_nll_may_be_worse(wrong: int, worse: float, good: bool) -> None:
    assert acceptable(found(4, wrong, worse), LORA) == good


def test_the_fewest_acceptable_ranks_are_chosen() -> None:
    weights = {0.1: found(8, 0, -0.2), 0.2: found(4, 0, 0.0), 0.3: found(4, 0, -0.1), 0.4: found(2, 30, 0.0)}
    assert choose(weights, LORA) == 0.3
    assert choose({0.4: weights[0.4]}, LORA) is None


def test_all_dev_utterances_are_measured_and_some_choose_the_epoch(
    meld: Meld, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewest_ranks, "text_backbone", lambda: (backbone(), Tokenizer()))
    made = task_of(meld, SETTINGS, 0)
    assert made.test.utterances == list(meld.splits["dev"])
    assert made.dev.utterances == task.dev.utterances
    assert made.train.utterances == task.train.utterances
    assert len(made.dev) == 20 < len(made.test)


@pytest.mark.parametrize(("weight", "name", "ranks"), [(None, "lora", 2), (KL_WEIGHTS[PRUNED], PRUNED, 1)])
def test_what_is_measured_is_the_row_of_the_comparison(
    task: Task, monkeypatch: pytest.MonkeyPatch, weight: float | None, name: str, ranks: int
) -> None:
    monkeypatch.setattr(methods, "PRUNE_THRESHOLD", -50.0)
    own = measure(task, weight, 3, SETTINGS)
    record = run(task, name, 3, SETTINGS)[0][0]
    assert float(own.right.mean()) == pytest.approx(record.accuracy)
    assert float(own.nll.mean()) == pytest.approx(record.nll)
    assert set(own.ranks.values()) == {ranks}
    assert own.total == 4 * ranks
    assert own.export < 1e-6, "a plain LoRA predicts what the pruned adapter predicts at its mean"


def test_an_export_that_differs_is_seen(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*parts: Any) -> Any:
        lora = to_lora(*parts)
        with torch.no_grad():
            lora.head.bias += torch.tensor([1.0, 0.0, 0.0])
        return lora

    monkeypatch.setattr(fewest_ranks, "to_lora", broken)
    assert measure(task, 1e-3, 3, SETTINGS).export > 0.05


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {None: LORA, 0.1: found(4, 0, 0.0), 0.2: found(2, 30, 0.0)}
    asked: list[tuple[float | None, int, Settings]] = []

    def answer(_task: Task, weight: float | None, seed: int, settings: Settings) -> Found:
        asked.append((weight, seed, settings))
        return answers[weight]

    monkeypatch.setattr(fewest_ranks, "measure", answer)
    monkeypatch.setattr(fewest_ranks, "task_of", lambda *_: None)
    command = ["--data", str(write(tmp_path)), "--seed", "5", "--weights"]
    assert fewest_ranks.main([*command, "0.2", "0.1"]) == 0
    assert asked == [(weight, 5, Settings()) for weight in (None, 0.2, 0.1)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "| 0.2 | 0.700 | -0.280 ± 0.049 | 1.000 | +0.000 ± 0.010 | 3 | query 2, value 1 | 0e+00 |"
    assert lines[-1] == "Chosen: 0.1."
    assert fewest_ranks.main([*command, "0.2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "No KL weight keeps LoRA's accuracy and NLL."
