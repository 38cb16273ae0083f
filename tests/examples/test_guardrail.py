"""The study of guards on a tiny language model: questions, training, answers, scores, records, tables."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bayes_adapters.analysis.metrics import aurc
from examples._tiny import tiny_language_model
from examples.generation.experiment import Settings
from examples.guardrail import experiment
from examples.guardrail.experiment import CALIBRATION, Options
from examples.guardrail.questions import KINDS, LEARNT, ask
from examples.guardrail.results import asked, difference_table, guard_table, task

OPTIONS = Options(
    learnt=12, calibration=12, asked=10, longest=4, at_once=5,
    training=Settings(layers=1, epochs=1, batch_size=6, rank=2, members=2, samples=3),
)  # fmt: skip


def model():
    tiny, tokenizer = tiny_language_model()
    torch.manual_seed(0)
    tokenizer.padding_side = "left"
    return LlamaForCausalLM(LlamaConfig(**tiny.config.to_dict() | {"num_hidden_layers": 2})).eval(), tokenizer


def test_no_question_is_learnt_and_measured() -> None:
    found = asked(OPTIONS)
    sums = [question for part in ("learn", CALIBRATION, LEARNT) for question in found[part]]
    assert len(set(sums)) == len(sums) == 34
    assert asked(OPTIONS) == found
    for kind in KINDS:
        for question in ask(kind, 20, seed=3):
            assert eval(question.text.removeprefix("What is ").split("?")[0]) == int(question.answer)


@pytest.mark.parametrize("name", ["lora", "blob", "ensemble"])
def test_answers_are_scored_as_they_were_written(name: str, tmp_path) -> None:
    own = task(tmp_path, *model(), options=OPTIONS)
    labels = own.train.batch([0, 1]).targets
    learnt = [own.tokenizer.decode(row[row >= 0]).replace(" ", "") for row in labels]
    assert learnt == [question.answer + "[END]" for question in asked(OPTIONS)["learn"][:2]]
    results, rows = experiment.run(own, name, 0, OPTIONS)
    scores = {"lora": {"total", "probability", "temperature"}}.get(name, {"total", "epistemic", "probability"})
    assert {(r.condition, r.score) for r in results} == {(kind, score) for kind in KINDS for score in scores}
    assert len(rows) == OPTIONS.calibration + len(KINDS) * OPTIONS.asked
    for result in results:
        rows_of = [row for row in rows if row.kind == result.condition]
        wrong = torch.tensor([row.wrong for row in rows_of]).double()
        assert result.aurc == aurc(torch.tensor([getattr(row, result.score) for row in rows_of]), wrong)
        assert result.accuracy == pytest.approx(1 - float(wrong.mean()))
    assert all(math.isnan(row.temperature) == (name != "lora") for row in rows)
    assert all(math.isnan(row.epistemic) == (name == "lora") for row in rows)


def test_a_temperature_of_one_changes_no_score(tmp_path, monkeypatch) -> None:
    """The second pass, over what was written, sees the distributions that the first wrote by."""
    own = task(tmp_path, *model(), options=OPTIONS)
    monkeypatch.setattr(experiment, "_temperature", lambda *_: experiment.TemperatureScaling(1.0))
    _, rows = experiment.run(own, "lora", 0, OPTIONS)
    for row in rows:
        assert row.temperature == pytest.approx(row.total, abs=1e-5)


def test_tables_hold_every_method_kind_and_score(tmp_path) -> None:
    own = task(tmp_path, *model(), options=OPTIONS)
    results, rows = experiment.run(own, "lora", 0, OPTIONS)
    drawn = [row._replace(method="blob", epistemic=row.total, temperature=math.nan) for row in rows]
    both = [*results, *(replace(r, method="blob", samples=3) for r in results if r.score == "total")]
    lines = guard_table(both)
    assert len(lines) == 2 + len(results) + len(KINDS)
    again = [row._replace(seed=1) for row in [*rows, *drawn]]
    half = [row._replace(wrong=number % 2) for number, row in enumerate([*rows, *drawn, *again])]
    assert [line.split(" | ")[:2] for line in difference_table(half, draws=20)[2:]] == [
        ["| lora", "probability"],
        ["| lora", "temperature"],
        ["| blob", "total"],
        ["| blob", "epistemic"],
        ["| blob", "probability"],
    ]
