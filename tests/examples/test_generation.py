"""The study of outside texts on a tiny language model: texts of equal length, training, records, intervals, writing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayes_adapters.analysis.metrics import auroc
from bayes_adapters.errors import DataError
from examples.generation.corpus import INSIDE, START, make_corpus
from examples.generation.experiment import OUTSIDE, Settings, Task, run
from examples.generation.results import COLUMNS, intervals
from examples.generation.states import States
from examples.generation.writing import BEGINNINGS, load_written, save_written, table, write
from examples.studies.comparison import mean_table
from examples.studies.decoder import cut
from examples.studies.kept_states import kept
from examples.studies.verify_prompts.prompts import Prompt
from tests.refusals import refuses
from tests.studies.test_decoder import decoder

SETTINGS = Settings(layers=1, held_out=6, epochs=2, batch_size=7, rank=2, members=2, samples=2)


class Words:
    """A tokenizer that knows thirty words, by their first letter, and pads on the left."""

    eos_token_id, pad_token_id = 1, 1

    def convert_tokens_to_ids(self, token):
        assert token == START
        return 0

    def __call__(self, text, **_):
        if isinstance(text, list):
            rows = [[0, *self(one.removeprefix(START))["input_ids"]] for one in text]
            longest = max(map(len, rows))
            pads = [[1] * (longest - len(row)) for row in rows]
            ids = torch.tensor([pad + row for pad, row in zip(pads, rows, strict=True)])
            mask = torch.tensor([[0] * len(pad) + [1] * len(row) for pad, row in zip(pads, rows, strict=True)])
            return {"input_ids": ids, "attention_mask": mask}
        return {"input_ids": [2 + (ord(word[0].lower()) - 97) % 26 for word in text.split()]}

    def decode(self, ids, **_):
        return "".join(f" {chr(95 + number)}" if number > 1 else "" for number in ids)


def prompts():
    said = [f"please press {c} to go on {d}" for c in "abcdefghij" for d in ("now", "today")]
    return [
        Prompt(f"{number:02}", text, Path(), language, 1.0)
        for language, own in (("en", said), ("es", [f"{text} vale ahora" for text in said]))
        for number, text in enumerate([*own, "too short"])
    ]


OTHERS = {"docstring": [f"zip {c} of all zipped z files {n}" for n in "xyzw" for c in "klm"]}


@pytest.fixture(scope="module")
def corpus():
    return make_corpus(prompts(), OTHERS, Words(), held_out=6, longest=6)


@pytest.fixture(scope="module")
def ran(corpus, tmp_path_factory):
    net = decoder()
    below, _ = cut(net, 1)
    every = [*corpus.train, *(text for own in corpus.parts.values() for text in own)]
    root = tmp_path_factory.mktemp("runs")
    ids = [text.ids for text in every]
    states = dict(zip([text.key for text in every], kept(ids, below, root), strict=True))
    again = kept(ids, below, root)
    assert all(torch.equal(states[text.key], state) for text, state in zip(every, again, strict=True))
    parts = {kind: States(own, [states[t.key] for t in own]) for kind, own in corpus.parts.items()}
    train = States(corpus.train, [states[t.key] for t in corpus.train])
    task = Task(train, parts, lambda: cut(net, 1)[1])
    return net, {name: run(task, name, 0, SETTINGS) for name in ("frozen", "lora", "ensemble", "c-lora")}


def test_outside_texts_are_as_long_and_in_order(corpus):
    assert list(corpus.parts) == [INSIDE, "shuffled", "foreign", "docstring"]
    columns = list(zip(*corpus.parts.values(), strict=True))
    assert (len(columns), len(corpus.train)) == (6, 14)
    for texts in columns:
        assert len({text.group for text in texts}) == 1
        assert {len(text.ids) for text in texts} == {7}
        assert all(text.ids[0] == 0 for text in texts)
        assert sorted(texts[1].ids) == sorted(texts[0].ids)
    assert any(texts[1].ids != texts[0].ids for texts in columns)
    learnt = {text.key for text in corpus.train}
    assert not learnt & {text.group for texts in columns for text in texts}
    assert all(text.ids[-1] == 1 for text in corpus.train)


def test_too_few_texts_are_refused():
    with refuses(DataError, "20 scripts", "give 20"):
        make_corpus(prompts(), OTHERS, Words(), held_out=20, longest=6)
    with refuses(DataError, "'docstring'"):
        make_corpus(prompts(), {"docstring": ["zip of all"]}, Words(), held_out=6, longest=6)


def test_a_run_learns_and_its_records_are_those_of_its_rows(ran):
    _, runs = ran
    losses = {name: runs[name][0][0].nll for name in ("frozen", "lora", "c-lora")}
    assert max(losses["lora"], losses["c-lora"]) < losses["frozen"]
    for name, spread in (("frozen", False), ("lora", False), ("ensemble", True), ("c-lora", True)):
        results, rows, _ = runs[name]
        assert [r.condition for r in results] == [INSIDE, "shuffled", "foreign", "docstring", OUTSIDE]
        assert (max(row.epistemic for row in rows) > 0) == spread
        assert all(row.tokens == 6 for row in rows)
        scores = torch.tensor([row.total for row in rows])
        outside = torch.tensor([row.kind != INSIDE for row in rows])
        assert results[-1].auroc_ood_total == pytest.approx(auroc(scores, outside))
    assert runs["ensemble"][0][0].parameters == 2 * runs["lora"][0][0].parameters


def test_tables_have_a_row_for_each_method(ran):
    rows = [row for _, own, _ in ran[1].values() for row in own]
    rows += [row._replace(seed=1, epistemic=2 * row.epistemic) for row in rows if row.method in ("lora", "c-lora")]
    records = [record for own, _, _ in ran[1].values() for record in own]
    lines = intervals(rows, draws=4)
    assert lines[0].startswith("| method | by its | shuffled | foreign | docstring | all |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| lora", "| c-lora"]
    assert len(mean_table(records, COLUMNS, "method", reference=INSIDE)) == 6
    told = {line.split(" | ")[0][2:]: line.split(" | ")[5] for line in lines[2:]}
    assert told["lora"].startswith(f"{ran[1]['lora'][0][-1].auroc_ood_total:.2f}"[1:])


def test_texts_are_written_by_the_whole_model(ran, tmp_path):
    net, runs = ran
    for parameter in runs["c-lora"][2].model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.3)  # after a few steps draws differ by less than is written
    said = write("c-lora", 0, runs["c-lora"][2], net, Words(), length=4)
    assert [text.beginning for text in said] == list(BEGINNINGS)
    assert all(len(text.tokens) == len(text.epistemic) <= 4 and min(text.epistemic) >= 0 for text in said)
    assert max(max(text.epistemic) for text in said) > 0
    save_written(tmp_path / "texts.json", said)
    assert load_written(tmp_path / "texts.json") == said
    odd = replace(said[0], tokens=["<b>", " |"], epistemic=[0.5, 0.25])
    assert "**Please enter**&lt;b><sub>500</sub> &#124;<sub>250</sub>" in table([odd])[2]
