"""Predictions keep the order of the data set, and records agree with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bayes_adapters import predict
from bayes_adapters.analysis.records import read_records
from bayes_adapters.errors import ConfigError
from examples.studies.rows import read_rows
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.dataset import collate
from examples.studies.verify_prompts.experiment import (
    Trained,
    evaluate,
    predict_all,
    task_description,
    train,
    validation_batches,
)
from examples.studies.verify_prompts.predictions import Prediction as Row
from tests.refusals import refuses
from tests.studies.verify_prompts.parts import SETTINGS, SIZES

pytestmark = pytest.mark.usefixtures("offline")


def test_predictions_come_back_in_the_order_of_the_data_set(corpus: Corpus, trained: Trained, evaluated: Path) -> None:
    dataset = corpus.evaluation("test", "white@0")
    prediction, order = predict_all(trained, dataset, SETTINGS)
    assert order.tolist() != sorted(order.tolist()), "sorting by length must matter for this test to say anything"
    singly = predict(
        trained.model, trained.guide, [collate([dataset[i]]) for i in range(len(dataset))], num_samples=3, seed=0
    )
    torch.testing.assert_close(prediction.probs[order], singly.probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prediction.epistemic[order], singly.epistemic, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(prediction.probs, singly.probs, rtol=1e-4, atol=1e-5)
    rows = [row for row in read_rows(evaluated / "lora-text-0.csv", Row) if row.condition == "white@0"]
    assert [(row.script, row.label) for row in rows] == [(pair.script_text, pair.label) for pair in dataset.pairs]
    assert [row.probability for row in rows] == pytest.approx(singly.probs.tolist(), rel=1e-4)
    assert [row.total for row in rows] == pytest.approx(singly.total.tolist(), rel=1e-4)
    assert [row.epistemic for row in rows] == pytest.approx(singly.epistemic.tolist(), rel=1e-3, abs=1e-5)


def test_methods_that_hear_are_measured_on_the_same_pairs(corpus: Corpus) -> None:
    result = train(corpus, "cola", 0, SETTINGS)
    records, rows = evaluate(corpus, result, SETTINGS)
    assert [record.condition for record in records] == ["clean", "missing", "white@0", "ood-it"]
    heard = corpus.heard()
    assert heard.heard() is heard
    for condition in ("white@0", "ood-it", "missing"):
        dataset = heard.evaluation("test", condition)
        own = [row for row in rows if row.condition == condition]
        assert [(row.script, row.label) for row in own] == [(pair.script_text, pair.label) for pair in dataset.pairs]
        assert dataset.pairs == corpus.evaluation("test", condition).pairs
        singly = predict(result.model, result.guide, [dataset.collate([dataset[i]]) for i in range(len(dataset))])
        assert [row.probability for row in own] == pytest.approx(singly.probs.tolist(), rel=1e-4)
    assert len({len(batch.inputs) for batch in validation_batches(heard, SETTINGS)}) == 2, "one kind has no audio"
    assert sum(batch.size for batch in validation_batches(heard, SETTINGS)) == 2 * SIZES["validation"]
    with refuses(ConfigError, "bayes-adapters verify", "cola"):
        task_description(corpus, result, SETTINGS)


def test_records_and_predictions_agree(evaluated: Path, corpus: Corpus) -> None:
    records = {r.condition: r for r in read_records(evaluated / "lora-text-0.json")}
    rows = list(read_rows(evaluated / "lora-text-0.csv", Row))
    assert list(records) == ["clean", "missing", "white@0", "ood-it"], "clean first: it is the reference"
    clean = {(r.recording, r.script): r for r in rows if r.condition == "clean"}
    assert set(clean) == {(f"en/{p.recording_key}", p.script_text) for p in corpus.pairs("test", "random")}
    for condition, record in records.items():
        own = [row for row in rows if row.condition == condition]
        assert record.n == len(own) == (7 if condition == "ood-it" else 14)
        assert record.nll == pytest.approx(
            -sum(math.log(row.probability if row.label else 1 - row.probability) for row in own) / len(own), rel=1e-5
        )
        assert record.accuracy == sum((row.probability > 0.5) == bool(row.label) for row in own) / len(own)
        assert record.epistemic == pytest.approx(sum(row.epistemic for row in own) / len(own), rel=1e-5)
        if condition != "ood-it":
            right, wrong = ([r.probability for r in own if r.label == label] for label in (1, 0))
            wins = sum((a > b) + 0.5 * (a == b) for a in right for b in wrong)
            assert record.auc == pytest.approx(wins / len(right) / len(wrong), abs=1e-6)
        far, near = [row.epistemic for row in own], [row.epistemic for row in clean.values()]
        if condition == "clean":
            assert math.isnan(record.auroc_ood)
        else:
            wins = sum((a > b) + 0.5 * (a == b) for a in far for b in near)
            assert record.auroc_ood == pytest.approx(wins / len(far) / len(near), abs=1e-4)
