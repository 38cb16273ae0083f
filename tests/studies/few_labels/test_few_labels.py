"""The study with few labels: cached states, every method trained to the end, its temperature, and the differences."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.studies.few_labels import experiment, methods
from examples.studies.few_labels.results import REFERENCE, differences
from examples.studies.few_labels.task import TYPOS, FewLabels, misspelt, split
from examples.studies.meld.data import Meld
from examples.studies.meld.experiment import CLEAN, draws
from examples.studies.meld.records import Row
from examples.studies.meld.task import Settings
from tests.helpers import bert
from tests.studies.meld.parts import PROMPTS, VOCABULARY, Tokenizer, write

SETTINGS = replace(experiment.SETTINGS, train_size=40, dev_size=24, test_size=30, epochs=2, batch_size=8, rank=2)


class AnyWord(Tokenizer):
    """Words that it does not know have a number, too."""

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        known = [w if w in VOCABULARY else VOCABULARY[len(w) % len(VOCABULARY)] for w in text.lower().split()]
        return super().__call__(" ".join(known), truncation, max_length)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> FewLabels:
    data = Meld.load(write(tmp_path_factory.mktemp("meld")))
    return FewLabels.of(data, PROMPTS, AnyWord(), lambda: bert(3), SETTINGS, 0)


def test_the_top_layers_continue_what_the_lower_ones_made(task: FewLabels) -> None:
    whole = bert(3).eval()
    below, top = split(whole, 2)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        right = whole(**inputs).last_hidden_state
        found = top(inputs_embeds=below(inputs), attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], right[mask.bool()], rtol=0, atol=1e-6)
    assert len(whole.encoder.layer) == 3, "the whole is as it was"


def test_a_batch_of_states_is_what_its_utterances_give_alone(task: FewLabels) -> None:
    rows = [5, 0, 9]
    batch = task.train.batch(rows)
    top = task.backbone().eval()
    assert batch.targets is not None
    for place, row in enumerate(rows):
        own = task.train.batch([row])
        length = own.inputs["inputs_embeds"].shape[1]
        assert int(batch.inputs["attention_mask"][place].sum()) == length == len(task.train[row])
        assert int(batch.targets[place]) == task.train.utterances[row].label
        with torch.no_grad():
            both = [top(**b.inputs).last_hidden_state for b in (batch, own)]
        torch.testing.assert_close(both[0][place, :length], both[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Every σ_q tried:UserWarning")  # hardly trained, the adapter tolerates any noise
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_is_trained_to_its_last_epoch_and_answers(task: FewLabels, name: str) -> None:
    tuned = methods.method(name)
    assert (tuned.chosen in tuned.values) == (len(tuned.values) == 4) == bool(tuned.knob)
    few = replace(SETTINGS, epochs=1, samples=2, members=2)
    trained = experiment.train(task, name, 0, few)
    said = draws(trained, task, "dev", few)
    assert said.shape[1:] == (24, 3)
    torch.testing.assert_close(said.sum(-1), torch.ones(said.shape[:2]), rtol=0, atol=1e-5)
    assert "val_nll" not in trained.histories[0][0], "no epoch is chosen"


def test_a_knob_is_turned(task: FewLabels) -> None:
    few = replace(SETTINGS, epochs=1, samples=2)
    for name in ("map", "blob", "mc-dropout"):
        values = methods.method(name).values
        assert experiment.dev_nll(task, name, 0, few, values[0]) != experiment.dev_nll(task, name, 0, few, values[-1])


def test_every_condition_is_measured_with_and_without_the_temperature(task: FewLabels) -> None:
    long = replace(SETTINGS, epochs=20, lr=2e-2)
    records, rows = experiment.run(task, "lora", 0, long)
    conditions = [CLEAN, "ood-prompts", *TYPOS]
    assert [(r.method, r.condition) for r in records] == [
        (name, condition) for condition in conditions for name in ("lora", REFERENCE)
    ]
    plain, scaled = records[:2]
    assert plain.train_accuracy == scaled.train_accuracy > 0.8
    assert math.isnan(plain.temperature)
    assert plain.accuracy == scaled.accuracy, "a temperature moves no answer"
    assert (scaled.nll < plain.nll) == (plain.total < scaled.total) == (scaled.temperature > 1)
    assert math.isnan(records[2].nll)
    assert not math.isnan(records[2].auroc_ood_total)
    assert len(rows) == 2 * sum(len(task.part(condition)) for condition in conditions)


def test_letters_are_replaced_by_their_share_and_always_the_same(task: FewLabels) -> None:
    text = replace(task.test.utterances[0], text="abcd efgh, " * 200)
    (noisy,) = misspelt([text], 0.3)
    assert noisy.text == misspelt([text], 0.3)[0].text
    assert [c for c in noisy.text if not c.isalpha()] == [c for c in text.text if not c.isalpha()]
    changed = sum(a != b for a, b in zip(noisy.text, text.text, strict=True)) / 1600
    assert 0.25 < changed < 0.33, "one letter of 26 is replaced by itself"


def _rows(method: str, seed: int, shift: float) -> list[Row]:
    source = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(60):
        logit = torch.randn(3, generator=source)
        logit[i % 3] += shift
        p = logit.softmax(-1)
        total = float(-(p * p.log()).sum())
        rows.append(Row(method, seed, CLEAN, f"t/{i}", f"t/{i // 4}", i % 3, *p.tolist(), total, total, 0.0))
    return rows


def test_differences_are_those_of_the_means_with_adjusted_p_values(tmp_path: Path) -> None:
    rows = [r for s in range(3) for m, shift in ((REFERENCE, 0.0), ("a", 2.0), ("b", 0.1)) for r in _rows(m, s, shift)]

    def mean(method: str) -> float:
        p = [(r.p_negative, r.p_neutral, r.p_positive)[r.label] for r in rows if r.method == method]
        return -sum(map(math.log, p)) / len(p)

    table = differences(rows, draws=20)
    assert [line.split(" | ")[0] for line in table[2:]] == [*(f"| {m} − {REFERENCE}" for m in "ab"), f"| {REFERENCE}"]
    for line, name in zip(table[2:], ("a", "b"), strict=False):
        found = line.split(" | ")[1].split()[0].replace("−", "-")
        assert float(found) == pytest.approx(mean(name) - mean(REFERENCE), abs=6e-4)
    assert float(table[2].split(" | ")[2]) < 0.01
    for line in table[2:]:
        error, floor = (float(value) for value in line.strip(" |").split(" | ")[-2:])
        assert 0 < floor < 0.2
        assert error > 0


def test_settings_are_those_of_the_regime() -> None:
    assert Settings(train_size=200, dev_size=200, test_size=1000, epochs=25, select=False) == experiment.SETTINGS
