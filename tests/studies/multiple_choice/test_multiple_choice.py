"""Questions with answer letters: the cut decoder, kept states, both regimes of one training, and the command."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bayes_adapters import Categorical, predict
from bayes_adapters.analysis.records import read_records
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from examples.multiple_choice import experiment, methods, results
from examples.multiple_choice.experiment import SELECTED, BestEpoch
from examples.multiple_choice.results import MultipleChoiceGrid, means
from examples.multiple_choice.task import LETTERS, TARGETS, make, question
from examples.studies.meld.data import Meld
from examples.studies.meld.experiment import CLEAN, fit_member
from examples.studies.meld.task import Task
from tests.studies.meld.parts import write

SETTINGS = replace(
    experiment.SETTINGS, train_size=24, dev_size=16, test_size=20, epochs=2, batch_size=8, rank=2, samples=2, members=2
)


class Letters:
    """Words to numbers below 48 by their letters, padded on the left."""

    pad_token_id, unk_token_id, padding_side = 0, None, "left"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [self.convert(word) for word in text.split()]}

    @staticmethod
    def convert(word: str) -> int:
        return 1 + LETTERS.index(word) if word in LETTERS else 4 + sum(map(ord, word)) % 44


def decoder() -> tuple[nn.Module, Letters]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=48, num_hidden_layers=4, tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config).eval(), Letters()


@pytest.fixture(scope="module")
def meld(tmp_path_factory: pytest.TempPathFactory) -> Meld:
    return Meld.load(write(tmp_path_factory.mktemp("meld")))


@pytest.fixture(scope="module")
def task(meld: Meld) -> Task:
    return make(meld, decoder, SETTINGS, 0, dtype=torch.float32)


def answers(task: Task, rows: list[int], whole: nn.Module) -> Tensor:
    """Return the probabilities of the letters behind each question alone, of the whole decoder."""
    found = []
    for row in rows:
        ids = torch.tensor([Letters()(task.train.utterances[row].text)["input_ids"]])
        with torch.no_grad():
            found.append(whole(input_ids=ids).logits[0, -1, [Letters.convert(letter) for letter in LETTERS]])
    return torch.stack(found).softmax(-1)


def test_the_top_layers_answer_as_the_whole_decoder_does(task: Task) -> None:
    rows = [3, 0, 11, 7]
    batch = task.train.batch(rows)
    mask = batch.inputs["attention_mask"]
    assert mask.sum(1).unique().numel() > 1, "some are padded"
    top = task.backbone()
    assert top.lm_head.weight is top.model.embed_tokens.weight, "tied as in the whole"
    assert task.head is not None
    model = LoRA(top, Categorical(3), targets=TARGETS, rank=2, head=task.head())
    assert len(model.layers) == 4
    found = predict(model, Delta(model), batch, num_samples=1).probs
    torch.testing.assert_close(found, answers(task, rows, decoder()[0]), rtol=0, atol=1e-5)


def test_states_are_kept_and_read(meld: Meld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(meld, decoder, SETTINGS, 0, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    whole, tokenizer = decoder()
    monkeypatch.setattr(whole.model, "forward", None)  # nothing is encoded again
    again = make(meld, lambda: (whole, tokenizer), SETTINGS, 0, tmp_path)
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert torch.equal(one.batch([2, 5]).inputs["inputs_embeds"], other.batch([2, 5]).inputs["inputs_embeds"])
    make(meld, decoder, SETTINGS, 1, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4, "another seed has other training questions, and the same others"


def test_the_best_epoch_is_put_back(task: Task) -> None:
    built = methods.method("blob")
    best = BestEpoch(task.batches("dev", SETTINGS), 2, 0)
    seen: list[float] = []

    def evaluate(model: Any, guide: Any) -> dict[str, float]:
        found = best(model, guide)
        seen.append(found["dev_nll"])
        return found

    fitted = fit_member(task, lambda parts: built.build(parts, built.chosen), 0, SETTINGS, evaluate=evaluate)
    least = min(seen)
    assert best.epoch == 1 + seen.index(least)
    model, guide = fitted.built.model, fitted.built.guide
    for p in [*model.trainable_parameters().values(), *guide.parameters()]:
        p.data.add_(0.5)
    assert evaluate(model, guide)["dev_nll"] > least + 1e-3
    best.restore(model, guide)
    assert evaluate(model, guide)["dev_nll"] == pytest.approx(least, abs=1e-6)


def test_a_published_value_is_one_of_those_that_were_searched_and_is_not_searched_itself() -> None:
    published = [name for name in methods.METHODS if name.endswith("-published")]
    assert len(published) >= 5
    for name in published:
        tuned, searched = methods.method(name), methods.method(name.removesuffix("-published"))
        assert tuned.values == ()
        assert tuned.chosen in searched.values
        assert tuned == replace(searched, values=(), chosen=tuned.chosen)
        assert tuned.chosen != searched.chosen


@pytest.mark.filterwarnings("ignore:Every σ_q tried:UserWarning")  # hardly trained, the adapter tolerates any noise
@pytest.mark.parametrize("name", [name for name in methods.METHODS if not name.endswith("-published")])
def test_one_training_gives_both_regimes(task: Task, name: str) -> None:
    tuned = methods.method(name)
    assert (tuned.chosen in tuned.values) == (len(tuned.values) == 4) == bool(tuned.knob)
    records, rows = experiment.run(task, name, 0, replace(SETTINGS, lr=5e-2))
    assert [(r.method, r.condition) for r in records] == [
        (label, condition) for condition in (CLEAN, SELECTED) for label in (name, f"{name}-temperature")
    ]
    assert len(rows) == 4 * len(task.test)
    last, _, selected, _ = records
    if name == "frozen":
        assert (last.nll, last.parameters) == (selected.nll, 0)
        assert math.isnan(last.epoch)
    else:
        assert last.epoch == 2 >= selected.epoch >= 1
    own = [r for r in rows if (r.method, r.condition) == (name, CLEAN)]
    probs = [(r.p_negative, r.p_neutral, r.p_positive)[r.label] for r in own]
    assert last.nll == pytest.approx(-sum(map(math.log, probs)) / len(own), abs=1e-6)


def test_without_an_adapter_it_is_the_decoder_alone(task: Task) -> None:
    _, rows = experiment.run(replace(task, test=task.train), "frozen", 0, SETTINGS)
    found = torch.tensor([[r.p_negative, r.p_neutral, r.p_positive] for r in rows[: len(task.train)]])
    torch.testing.assert_close(found, answers(task, list(range(len(task.train))), decoder()[0]), rtol=0, atol=1e-5)


def test_a_prompt_ends_where_the_answer_begins(task: Task) -> None:
    for utterance in task.test.utterances:
        assert utterance.text.endswith("\nAnswer:")
    assert question(replace(task.test.utterances[0], text="Oh!")).text.startswith('"Oh!"')


def test_the_command_encodes_once_runs_and_reports(meld: Meld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted() -> tuple[nn.Module, Letters]:
        calls.append(1)
        return decoder()

    monkeypatch.setattr(results, "language_model", counted)
    monkeypatch.setattr(MultipleChoiceGrid, "settings", SETTINGS)
    data, runs, page = write(tmp_path / "data"), tmp_path / "runs", tmp_path / "page.md"
    markers = [name + suffix for name in results.TABLES for suffix in ("", "_differences")]
    page.write_text("".join(f"<!-- {marker} -->\n<!-- /{marker} -->\n" for marker in markers))
    grid = MultipleChoiceGrid()
    shared = ["grid", "--data", str(data), "--runs", str(runs), "--seeds", "2", "--out", str(tmp_path / "all.json")]
    monkeypatch.setattr("sys.argv", [*shared, "--page", str(page), "--jobs", "1"])
    monkeypatch.setattr(
        MultipleChoiceGrid,
        "run",
        lambda self, arguments, _: sum(bool(self.one(m, s, arguments)) for s in (0, 1) for m in ("frozen", "lora")),
    )
    assert grid.main() == 0
    assert len(calls) == 1 + 4
    text = page.read_text()
    assert "| lora-temperature | 2 |" in text
    assert "lora − lora-temperature" in text
    found = read_records(tmp_path / "all.json", experiment.Answered)
    assert "\n".join(means(found, SELECTED)) in text
