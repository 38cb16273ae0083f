"""What is saved beside an adapter so that verify can read it: thresholds seen on validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayes_adapters import save
from bayes_adapters.analysis.saved import load_calibration
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.reliability import frozen_pairs
from bayes_adapters.speech.verify import VerifyTask
from examples.studies.verify_prompts import kept
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import (
    PLAIN,
    VERIFY_SAMPLES,
    Trained,
    predict_all,
    risk_limit,
    task_description,
)
from tests.studies.verify_prompts.parts import SETTINGS

pytestmark = pytest.mark.usefixtures("offline")


def test_the_task_says_what_was_seen_on_validation(corpus: Corpus, trained: Trained) -> None:
    task = task_description(corpus, trained, SETTINGS)
    dataset = corpus.evaluation("validation", "clean")
    prediction: Prediction = predict_all(trained, dataset, replace(SETTINGS, samples=VERIFY_SAMPLES))[0]
    assert task["calibration"] == {"validation_pairs": 22, "samples": 32}
    assert task["max_tokens"] == corpus.training(PLAIN, seed=0).max_tokens == 64
    for part in ("total", "epistemic"):
        low, high = (task["thresholds"][f"{part}_{q}"] for q in ("q90", "q99"))
        values = getattr(prediction, part)
        assert float(values.min()) < low < high <= float(values.max())
        assert 1 <= int((values > low).sum()) <= 3  # 10 % of 22; equal scripts may tie


def test_verify_can_read_the_task(corpus: Corpus, trained: Trained, tmp_path: Path) -> None:
    save(tmp_path, trained.model, trained.guide, task=task_description(corpus, trained, SETTINGS))
    task = VerifyTask.from_directory(tmp_path)
    assert (task.max_tokens, task.frames_per_second) == (64, 25)


def test_what_is_kept_with_the_adapter_is_that_of_its_validation_pairs(
    corpus: Corpus, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "VERIFY_SAMPLES", 2)  # draws cost time
    calibration = kept.fitted(corpus, trained, SETTINGS, alpha=0.2)
    pairs = kept.pair_densities(corpus, trained.model)
    assert pairs == {}  # twelve recordings are too few
    save(tmp_path, trained.model, trained.guide, calibration=calibration, pair_densities=pairs)
    assert load_calibration(tmp_path) == calibration
    dataset = corpus.evaluation("validation", "clean")
    prediction, order = predict_all(trained, dataset, replace(SETTINGS, samples=2))
    labels = torch.tensor([pair.label for pair in dataset.pairs])
    score = (prediction.probs[order] - labels).abs().double()  # 1 − p of the right answer
    assert calibration[0].threshold == pytest.approx(float(score.sort().values[18]))  # ⌈23 · .8⌉ = 19
    x, a = kept.features(corpus, trained.model, "validation", label=0)
    wrong = [i for i, pair in enumerate(dataset.pairs) if pair.label == 0]
    inputs, contexts, _ = frozen_pairs(trained.model, dataset.batch(wrong[-1:]))
    torch.testing.assert_close((x[-1:], a[-1:]), (inputs, contexts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("total", "wrong", "limit"),
    [
        ([0.1, 0.2, 0.3], [0, 0, 0], 0.3),
        ([0.3, 0.1, 0.2], [1, 0, 0], 0.2),
        ([0.1, 0.2], [1, 0], 0.0),  # even the most certain answer is wrong
        ([0.05 * i for i in range(1, 21)], [0] * 8 + [1] + [0] * 10 + [1], 1.0),  # the last two are 1 of 19 and 2 of 20
        ([0.05 * i for i in range(1, 21)], [0] * 8 + [1] * 2 + [0] * 10, 1.0),
        ([0.2] * 10, [1] + [0] * 9, 0.2),
        ([0.1, 0.2, 0.2], [0, 0, 1], 0.1),  # a tie is within the limit as a whole or not at all
    ],
)
def test_the_range_in_which_few_answers_are_wrong(total: list[float], wrong: list[int], limit: float) -> None:
    assert risk_limit(torch.tensor(total), torch.tensor(wrong).bool(), 0.1) == pytest.approx(limit)
