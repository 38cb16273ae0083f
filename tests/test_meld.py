"""Sentiment of utterances on files made here: loading, splits, batches, methods, records, the report."""

from __future__ import annotations

import csv
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bayes_adapters import predict
from bayes_adapters._ranks import shrink
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from bayes_adapters.handlers import base_distribution
from bayes_adapters.pruning import PruneSchedule
from bayes_adapters.records import write_records
from bayes_adapters.sites import Granularity
from bayes_adapters.training_free import bayesianise
from examples.length_batches import LengthBatches
from examples.meld import data as meld_data
from examples.meld import kl_weights, methods, results
from examples.meld.data import Meld, Utterance, Utterances, voice_prompts
from examples.meld.experiment import CLEAN, FROZEN, OOD, Settings, Task, draws, run, train, train_member
from examples.meld.frozen import frozen_probs, logistic_regression
from examples.meld.methods import KL_WEIGHTS, METHODS, PRUNE_THRESHOLD, Build, method
from examples.meld.records import Row, read_results
from examples.rows import read_rows, write_rows
from examples.verify_prompts.prompts import Prompt
from tests.helpers import bert

HEADER = (
    "Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID", "Season", "Episode",
    "StartTime", "EndTime",
)  # fmt: skip
WORDS = {"negative": ["awful", "sad"], "neutral": ["table", "seven"], "positive": ["lovely", "joy"]}
FILLER = ["the", "a", "is", "it", "was", "you", "so"]
VOCABULARY = [*FILLER, *(word for words in WORDS.values() for word in words), "please", "press", "wait", "’"]
SIZES = {"train": 30, "dev": 8, "test": 12}
SETTINGS = Settings(
    train_size=60, dev_size=20, test_size=30, epochs=1, batch_size=8, rank=2, members=2, samples=3, dev_samples=1
)


class Tokenizer:
    """Whitespace words to numbers from 1; counts how often it is asked."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        assert truncation
        self.calls += 1
        return {"input_ids": [1 + VOCABULARY.index(word) for word in text.lower().split()][:max_length]}


def dialogue(split: str, number: int, lines: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    episode = {"train": 0, "dev": 1, "test": 2}[split]
    return [
        dict(
            zip(
                HEADER,
                ("1", text, "Ann", "joy", sentiment, str(number), str(i), str(episode), str(number), f"0:0{i}", "0:9"),
                strict=True,
            )
        )
        for i, (text, sentiment) in enumerate(lines)
    ]


def rows_of(split: str) -> list[dict[str, str]]:
    source = random.Random(split)
    rows = []
    for number in range(SIZES[split]):
        lines = []
        for _ in range(source.randint(2, 5)):
            sentiment = source.choice(list(WORDS))
            words = [*source.choices(FILLER, k=source.randint(1, 6)), source.choice(WORDS[sentiment])]
            source.shuffle(words)
            lines.append((" ".join(words), sentiment))
        rows += dialogue(split, number, lines)
    return rows


def write(folder: Path, **splits: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        with (folder / f"{split}_sent_emo.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            writer.writerows(splits.get(split) or rows_of(split))
    return folder


def backbone() -> nn.Module:
    return bert()


PROMPTS = [
    Utterance(f"prompt/{i}", f"prompt/{i}", text, None) for i, text in enumerate(["please wait", "press seven", "wait"])
]


@pytest.fixture(scope="module")
def meld(tmp_path_factory: pytest.TempPathFactory) -> Meld:
    return Meld.load(write(tmp_path_factory.mktemp("meld")))


@pytest.fixture(scope="module")
def task(meld: Meld) -> Task:
    return Task.make(meld, PROMPTS, Tokenizer(), backbone, SETTINGS, 0)


def test_the_files_are_read_as_they_are(tmp_path: Path) -> None:
    lines = [('it ’ is, "awful"\nso', "negative"), ("a table", "neutral"), ("joy", "positive")]
    folder = write(tmp_path, test=dialogue("test", 4, lines))
    found = Meld.load(folder).splits
    assert [(u.key, u.group, u.text, u.label) for u in found["test"]] == [
        ("test/4/0", "test/4", lines[0][0], 0),
        ("test/4/1", "test/4", "a table", 1),
        ("test/4/2", "test/4", "joy", 2),
    ]
    assert {name: len({u.group for u in part}) for name, part in found.items()} == {**SIZES, "test": 1}


def test_the_digest_knows_every_byte(tmp_path: Path) -> None:
    folder = write(tmp_path)
    before = Meld.load(folder).digest
    assert Meld.load(folder).digest == before
    path = folder / "dev_sent_emo.csv"
    path.write_bytes(path.read_bytes().replace(b"Ann", b"Bob", 1))
    assert Meld.load(folder).digest != before


def test_a_missing_folder_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"no train_sent_emo.csv, dev_.*GPL-3.0.*declare-lab/MELD.*--data"):
        Meld.load(tmp_path / "nowhere")
    (write(tmp_path) / "dev_sent_emo.csv").unlink()
    with pytest.raises(MissingResourceError, match=f"{tmp_path} has no dev_sent_emo.csv. "):
        Meld.load(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("positive", "happy", r"Line \d+ of .*dev_sent_emo.csv has the sentiment 'happy'; allowed: negative, neutral"),
        ("Sentiment", "sentiment", r"no column 'Sentiment'. Did you mean 'sentiment'"),
        ("joy,", "", r"Line \d+ of .* has too few fields"),
    ],
)
def test_damaged_files(tmp_path: Path, before: str, after: str, message: str) -> None:
    path = write(tmp_path) / "dev_sent_emo.csv"
    text = path.read_text(encoding="utf-8-sig")
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(DataError, match=message):
        Meld.load(tmp_path)


def test_more_damaged_files(tmp_path: Path) -> None:
    one = dialogue("dev", 0, [("joy", "positive")])
    with pytest.raises(DataError, match="utterance 0 of dialogue 0 comes twice"):
        Meld.load(write(tmp_path, dev=[*one, *one]))
    with pytest.raises(DataError, match=r"Line 2 of .* has an empty utterance"):
        Meld.load(write(tmp_path, dev=[one[0] | {"Utterance": "  "}]))
    path = write(tmp_path) / "dev_sent_emo.csv"
    whole = path.read_text(encoding="utf-8-sig")
    path.write_text(whole.splitlines()[0] + "\n")
    with pytest.raises(DataError, match="holds no utterance"):
        Meld.load(tmp_path)
    path.write_bytes(whole.replace("is", "’s").encode("cp1252"))
    with pytest.raises(DataError, match="is not UTF-8"):
        Meld.load(tmp_path)


def test_a_dialogue_in_two_splits_is_refused(tmp_path: Path) -> None:
    copy = [row | {"Dialogue_ID": "99"} for row in rows_of("train") if row["Dialogue_ID"] == "3"]
    with pytest.raises(DataError, match=r"The dialogue train/3 is also test/99: the splits are not disjoint"):
        Meld.load(write(tmp_path, test=[*rows_of("test"), *copy]))
    # Equal words in another episode are another dialogue, and a number means nothing across files.
    other = [row | {"Dialogue_ID": "99", "Season": "8"} for row in copy]
    assert Meld.load(write(tmp_path, test=[*rows_of("test"), *other])).dropped == ()


def test_a_moment_that_two_splits_share_stays_in_the_later_one(tmp_path: Path) -> None:
    rows = rows_of("test")
    shared = [row for row in rows if row["Dialogue_ID"] == "5"][1] | {"Dialogue_ID": "50", "EndTime": "0:7"}
    found = Meld.load(
        write(tmp_path, train=[*rows_of("train"), shared], dev=[*rows_of("dev"), shared | {"EndTime": "0:8"}])
    )
    assert set(found.dropped) == {"train/50/1", "dev/50/1"}
    assert len(found.splits["test"]) == len(rows)
    assert not {u.key for part in found.splits.values() for u in part} & set(found.dropped)


def test_subsets(meld: Meld) -> None:
    first, again, other = (meld.sample("train", 40, seed) for seed in (0, 0, 1))
    assert first == again
    assert len({u.key for u in first}) == 40
    assert {u.key for u in first} != {u.key for u in other}
    assert meld.sample("train", None, 3) == list(meld.splits["train"])
    with pytest.raises(ConfigError, match=r"has .* utterances; cannot draw 4000"):
        meld.sample("train", 4000, 0)
    part = meld.dialogues("test", 15)
    groups = {u.group for u in part}
    assert 15 <= len(part) < 20, "dialogues have at most five utterances"
    assert part == [u for u in meld.splits["test"] if u.group in groups], "whole dialogues, in order"
    with pytest.raises(ConfigError, match="cannot take 0"):
        meld.dialogues("test", 0)


def test_tokens_are_made_when_they_are_asked_for(meld: Meld) -> None:
    tokenizer = Tokenizer()
    dataset = Utterances(meld.splits["train"], tokenizer, max_tokens=2)
    assert (len(dataset), tokenizer.calls) == (len(meld.splits["train"]), 0)
    assert dataset[3] == dataset[3]
    assert len(dataset[3]) == 2
    assert tokenizer.calls == 1
    assert dataset.targets().tolist() == [u.label for u in meld.splits["train"]]
    with pytest.raises(DataError, match="no utterances"):
        Utterances([], tokenizer)


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_hold_every_example_once_with_its_tokens(task: Task, shuffle: bool) -> None:
    batches = LengthBatches(task.train, 7, length=task.train.length, shuffle=shuffle, seed=2)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append([i for batch in batches for i in batch.ids.tolist()])
        assert sorted(orders[-1]) == list(range(60))
        assert len(list(batches)) == len(batches) == 9
    assert orders[0] == orders[2]
    assert (orders[0] != orders[1]) == shuffle
    for batch in batches:
        for row, number in enumerate(batch.ids.tolist()):
            real = batch.inputs["attention_mask"][row].bool()
            assert tuple(batch.inputs["input_ids"][row][real].tolist()) == task.train[number]
            assert bool((batch.inputs["input_ids"][row][~real] == 0).all())
            assert int(batch.targets[row]) == task.train.utterances[number].label
    assert next(iter(LengthBatches(task.foreign, 2, length=task.foreign.length))).targets is None


def test_prompts_come_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Press seven.", "press  seven", "Wait!"]
    prompts = [Prompt(str(i), text, Path("x.wav"), "en", 1.0) for i, text in enumerate(texts)]
    monkeypatch.setattr(meld_data, "load_prompts", lambda languages: prompts if languages == ("en",) else [])
    found = voice_prompts()
    assert [u.text for u in found] == ["press  seven", "Wait!"]
    assert all(u.label is None for u in found)
    assert len({u.key for u in found} | {u.group for u in found}) == 2


@pytest.fixture(scope="module")
def finished(task: Task) -> dict[str, tuple[list[Any], list[Row]]]:
    return {name: run(task, name, 3, SETTINGS) for name in (FROZEN, *METHODS)}


@pytest.mark.parametrize("name", [FROZEN, *METHODS])
def test_records_and_predictions_agree(finished: Any, task: Task, name: str) -> None:
    records, rows = finished[name]
    clean, ood = records
    assert [(r.method, r.seed, r.split, r.condition) for r in records] == [
        (name, 3, "test", CLEAN),
        (name, 3, "test", OOD),
    ]
    own = {c: [row for row in rows if row.condition == c] for c in (CLEAN, OOD)}
    assert [(r.key, r.label) for r in own[CLEAN]] == [(u.key, u.label) for u in task.test.utterances]
    assert [(r.key, r.label) for r in own[OOD]] == [(u.key, -1) for u in PROMPTS]
    probs = [(r.p_negative, r.p_neutral, r.p_positive) for r in own[CLEAN]]
    labels = [r.label for r in own[CLEAN]]
    assert clean.accuracy == pytest.approx(
        sum(p.index(max(p)) == y for p, y in zip(probs, labels, strict=True)) / clean.n
    )
    assert clean.nll == pytest.approx(-sum(math.log(p[y]) for p, y in zip(probs, labels, strict=True)) / clean.n)
    assert clean.total == pytest.approx(sum(r.total for r in own[CLEAN]) / clean.n)
    assert math.isnan(clean.auroc_ood)
    for kind, value in (("epistemic", ood.auroc_ood), ("total", ood.auroc_ood_total)):
        far, near = ([getattr(r, kind) for r in own[c]] for c in (OOD, CLEAN))
        wins = sum((a > b) + 0.5 * (a == b) for a in far for b in near)
        assert value == pytest.approx(wins / len(far) / len(near))
    for metric in ("accuracy", "auc", "nll", "brier", "ece", "auroc_error", "aurc", "auroc_error_epistemic"):
        assert math.isnan(getattr(ood, metric)), "prompts have no sentiment"
        assert name.startswith("lora") or name == FROZEN or math.isfinite(getattr(clean, metric))
    assert clean.samples == {"ensemble": 2}.get(name, 1 if name == FROZEN or name.startswith("lora") else 3)
    assert clean.parameters == ood.parameters or name == FROZEN
    assert clean.parameters > 100 or name == FROZEN
    assert clean.train_seconds > 0
    ranks = {"lora-r12": 3, "lora-r20": 5}.get(name, 2)
    assert clean.ranks_kept == ranks or (name == FROZEN and math.isnan(clean.ranks_kept))
    uncertain = [r.epistemic > 0 for r in own[CLEAN]]
    assert any(uncertain) == (name != FROZEN and not name.startswith("lora"))


def test_what_is_written_is_read_again(finished: Any, tmp_path: Path) -> None:
    records, rows = finished["lora"]
    write_records(tmp_path / "a.json", records)
    again = read_results(tmp_path / "a.json")
    assert [str(r) for r in again] == [str(r) for r in records]
    write_rows(tmp_path / "a.csv", Row, rows)
    found = list(read_rows(tmp_path / "a.csv", Row))
    assert [r[:6] for r in found] == [r[:6] for r in rows]
    assert [v for r in found for v in r[6:]] == pytest.approx([v for r in rows for v in r[6:]])
    for text, message in (("[", "is not JSON"), ('[{"method": 1}]', "does not hold records of this benchmark")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_results(tmp_path / "b.json")
    (tmp_path / "b.csv").write_text("x\n")
    with pytest.raises(DataError, match="first line"):
        list(read_rows(tmp_path / "b.csv", Row))


def test_an_ensemble_averages_members_of_different_seeds(task: Task) -> None:
    trained = train(task, "ensemble", 3, SETTINGS)
    assert len(trained.members) == 2
    whole = draws(trained, task, "test", SETTINGS)
    for number, (model, guide, _) in enumerate(trained.members):
        singly = [Utterances([u], Tokenizer()) for u in task.test.utterances]
        one = torch.cat([predict(model, guide, [s.batch([0])], num_samples=1).probs for s in singly])
        torch.testing.assert_close(whole[number], one, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    alone = draws(train(task, "lora", 3, SETTINGS), task, "test", SETTINGS)
    torch.testing.assert_close(whole[:1], alone)  # the first member is LoRA of the same seed


def test_lora_learns_and_a_seed_repeats(task: Task) -> None:
    settings = replace(SETTINGS, epochs=20, lr=3e-2)
    records, rows = run(task, "lora", 0, settings)
    assert records[0].accuracy > 0.85
    assert run(task, "lora", 0, settings)[1] == rows


def test_after_training_a_method_may_change_what_predicts(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def build(parts: Any) -> Any:
        model, guide, training = METHODS["lora"].build(parts)
        assert (parts.num_data, parts.steps) == (60, 8)

        def finish(m: Any, g: Any, batches: Any, dev: Any) -> Any:
            seen.append((len(batches.dataset), len(dev.dataset)))
            with torch.no_grad():
                m.head.weight.zero_()
                m.head.bias.copy_(torch.tensor([0.0, 0.0, math.log(2)]))
            return m, g

        changed = replace(training, finish=finish, ranks_kept=lambda m, g: 1.5)
        return type(METHODS["lora"].build(replace(parts, backbone=backbone())))(model, guide, changed)

    monkeypatch.setitem(METHODS, "changed", replace(METHODS["lora"], build=build))
    records, rows = run(task, "changed", 0, SETTINGS)
    assert seen == [(60, 20)]
    assert {round(r.p_positive, 5) for r in rows} == {0.5}
    assert records[0].ranks_kept == 1.5


PUBLISHED = {
    "mc-dropout": ("AdapterDropout", "MCDropout"),
    "bayeslora-2025": ("AdapterDropout", "MCDropout"),
    "blob": ("StochasticDown", "MeanField"),
    "tfb": ("LoRA", "Delta"),
    "scalabl": ("DiagonalCore", "MeanField"),
    "bayeslora-2026": ("StochasticFactors", "RankWise"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_published_method_is_here(name: str) -> None:
    parts = Build(backbone(), num_data=60, steps=16, rank=3, alpha=5.0, prior_scale=0.7)
    model, guide, training = METHODS[name].build(parts)
    assert (type(model).__name__, type(guide).__name__) == PUBLISHED[name]
    config, options = model.config(), guide.config()
    assert (config["rank"], config["alpha"], model.likelihood.config()["num_classes"]) == (3, 5.0, 3)
    assert {path.rsplit(".", 1)[-1] for path in model.layers} == {"query", "value"}
    assert len(model.layers) == 4
    assert training.random
    assert training.kl_weight == KL_WEIGHTS.get(name, 1.0)
    if model.granularity is Granularity.GLOBAL:
        assert config["num_data"] == 60
        assert name in KL_WEIGHTS
    if name in {"mc-dropout", "bayeslora-2025"}:
        assert config["drop"] == {"mc-dropout": 0.1, "bayeslora-2025": 0.15}[name]
        assert config["granularity"] == "token", "a mask for every token"
    if name == "blob":
        assert (options["parameter"], options["init_scale"], config["flipout"]) == ("root", (0.00125, 0.0025), True)
        (site, *_) = model.sites
        assert float(base_distribution(model.prior.of(site)).stddev.flatten()[0]) == pytest.approx(0.7)
    if name == "scalabl":
        assert (options["positive_mean"], options["init_scale"]) == (True, (0.05 / 2**0.5, 0.05))
    assert (training.on_step is not None) == (name == "bayeslora-2026")
    if name == "bayeslora-2026":
        assert options["init_log_variance"] == -8.0
        assert training.on_step == PruneSchedule(PRUNE_THRESHOLD, start=8, until=8, min_rank=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_method_learns_and_a_seed_repeats(task: Task, name: str) -> None:
    settings = replace(SETTINGS, epochs=12, lr=3e-2)
    trained = train(task, name, 0, settings)
    (history,) = trained.histories
    assert min(epoch["val_nll"] for epoch in history) < 0.7 * history[0]["val_nll"]
    found = draws(trained, task, "test", settings)
    right = found.mean(0).argmax(-1) == task.test.targets()
    assert float(right.double().mean()) > 0.8
    short = replace(settings, epochs=1)
    first, again, other = (run(task, name, seed, short)[1] for seed in (1, 1, 2))
    assert first == again
    assert [r[6:] for r in first] != [r[6:] for r in other]


def test_a_finished_run_with_pruning_is_read_again(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its checkpoint, with the ranks that were left and not those it began with."""
    monkeypatch.setattr(methods, "PRUNE_THRESHOLD", -50.0)
    before, again = (run(task, "bayeslora-2026", 0, SETTINGS, tmp_path) for _ in range(2))
    assert before[1] == again[1]
    assert before[0][0].ranks_kept == again[0][0].ranks_kept == 1


@pytest.mark.parametrize(("threshold", "kept"), [(50.0, 2.0), (-50.0, 1.0)])
def test_ranks_are_taken_out_once_half_way(
    task: Task, monkeypatch: pytest.MonkeyPatch, threshold: float, kept: float
) -> None:
    monkeypatch.setattr(methods, "PRUNE_THRESHOLD", threshold)
    settings = replace(SETTINGS, epochs=2)
    records, _ = run(task, "bayeslora-2026", 0, settings)
    assert {r.ranks_kept for r in records} == {kept}
    model, guide, training = train(task, "bayeslora-2026", 0, settings).members[0]
    schedule: Any = training.on_step
    assert [record.step for record in schedule.records] == [8]  # of 2 · 8 steps
    assert schedule.records[0].after == model.ranks
    assert training.ranks_kept is not None
    assert training.ranks_kept(model, guide) == kept


def test_the_mean_of_ranks_that_differ() -> None:
    parts = Build(backbone(), num_data=60, steps=16, rank=4)
    model, guide, training = METHODS["bayeslora-2026"].build(parts)
    first, *others = model.layers
    shrink(model, guide, {first: 1, others[0]: 2})
    assert training.ranks_kept is not None
    assert training.ranks_kept(model, guide) == (1 + 2 + 4 + 4) / 4


def test_tfb_puts_noise_around_the_trained_lora(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, epochs=4, lr=3e-2)
    calls: list[tuple[Any, int]] = []

    def spy(model: Any, guide: Any, anchors: Any, *, seed: int) -> Any:
        calls.append((anchors, seed))
        return bayesianise(model, guide, anchors, seed=seed)

    monkeypatch.setattr(methods, "bayesianise", spy)
    ((model, guide, _),) = train(task, "tfb", 5, settings).members
    ((lora, point, _),) = train(task, "lora", 5, settings).members
    assert [(anchors.dataset.utterances, seed) for anchors, seed in calls] == [(task.dev.utterances, 5)]
    assert type(guide).__name__ == "TrainingFree"
    batches = task.batches("test", settings)
    mean = predict(model, guide, batches, mean_only=True).probs
    torch.testing.assert_close(mean, predict(lora, point, batches, num_samples=1).probs, rtol=1e-4, atol=1e-5)
    noisy = predict(model, guide, batches, num_samples=2, return_samples=True).samples
    assert noisy is not None
    assert float((noisy[0] - noisy[1]).abs().max()) > 1e-4


def test_dev_utterances_choose_the_kl_weight(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    original = METHODS["blob"].build

    def build(parts: Any) -> Any:
        built = original(parts)
        seen.append(built.training.kl_weight)
        return built

    monkeypatch.setitem(METHODS, "blob", replace(METHODS["blob"], build=build))
    built = kl_weights.weighted("blob", 0.25)(Build(backbone(), num_data=60, steps=8, rank=2))
    assert (built.training.kl_weight, seen) == (0.25, [KL_WEIGHTS["blob"]])
    monkeypatch.setattr(methods, "PRUNE_THRESHOLD", -50.0)
    settings = replace(SETTINGS, epochs=2, dev_samples=2)
    bare = replace(task, test=None, foreign=None)  # type: ignore[arg-type]
    nll, kept = kl_weights.dev_nll(bare, "bayeslora-2026", 1e-2, 3, settings)
    _, history, _ = train_member(task, kl_weights.weighted("bayeslora-2026", 1e-2), 3, settings)
    assert [epoch["kl_weight"] for epoch in history] == pytest.approx([1e-2, 1e-2])
    assert (nll, kept) == (min(epoch["val_nll"] for epoch in history), 1.0)

    found: list[tuple[str, float, int, int | None, float]] = []

    def spy(made: Task, name: str, weight: float, seed: int, chosen: Settings) -> tuple[float, float]:
        nll, ranks = dev_nll(made, name, weight, seed, chosen)
        found.append((name, weight, len(made.train), chosen.train_size, nll))
        return nll, ranks

    dev_nll = kl_weights.dev_nll
    monkeypatch.setattr(kl_weights, "dev_nll", spy)
    monkeypatch.setattr(kl_weights, "text_backbone", lambda: (backbone(), Tokenizer()))
    monkeypatch.setattr(kl_weights, "backbone", backbone)
    monkeypatch.setattr(kl_weights, "Settings", partial(Settings, dev_size=20, rank=2))
    command = ["--data", str(write(tmp_path)), "--methods", "scalabl", "--weights", "1", "0.1", "--train-size", "40"]
    assert kl_weights.main(command) == 0
    assert [entry[:4] for entry in found] == [("scalabl", 1.0, 40, 40), ("scalabl", 0.1, 40, 40)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [f"| scalabl | {entry[1]:g} | {entry[4]:.4f} | 2.00 |" for entry in found]


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match=r"Unknown method 'c-lorra'.*Did you mean 'c-lora'"):
        method("c-lorra")


def test_logistic_regression_finds_the_optimum_and_dev_chooses_the_penalty() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 5, generator=rng), torch.randint(0, 3, (80,), generator=rng)
    linear = logistic_regression(x, y, 3, 0.1)
    loss = nn.functional.cross_entropy(linear(x), y) + 0.05 * linear.weight.square().sum()
    gradients = torch.autograd.grad(loss, list(linear.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    (flat,) = frozen_probs((x, y), (x[:40] * 0, torch.randint(0, 3, (40,), generator=rng)), 3, x)
    assert flat.shape == (80, 3)
    # Labels are noise: held-out data want the strongest penalty, the training data themselves the weakest.
    held_out = (torch.randn(200, 5, generator=rng), torch.randint(0, 3, (200,), generator=rng))
    spread = [frozen_probs((x, y), dev, 3, x)[0].std() for dev in (held_out, (x, y))]
    assert spread[0] < spread[1]


def test_the_report_compares_finished_runs(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, runs, readme = write(tmp_path / "data"), tmp_path / "runs", tmp_path / "README.md"
    runs.mkdir()
    for name in ("lora", "ensemble"):
        write_rows(runs / f"{name}-0.csv", Row, [r._replace(seed=0) for r in finished[name][1]])
        write_records(runs / f"{name}-0.json", [replace(r, seed=0) for r in finished[name][0]])
    readme.write_text("<!-- meld -->\n<!-- /meld -->\n<!-- meld_differences -->\n<!-- /meld_differences -->\n")
    monkeypatch.setattr(results, "voice_prompts", lambda: PROMPTS)
    command = [
        "results",
        "--data",
        str(folder),
        "--runs",
        str(runs),
        "--out",
        str(tmp_path / "all.json"),
        "--seeds",
        "1",
    ]
    command += ["--methods", "lora", "ensemble", "--device", "cpu", "--readme", str(readme), "--test-size", "20"]
    monkeypatch.setattr(sys, "argv", command)
    assert results.MeldSentiment().main() == 0
    assert [r.method for r in read_results(tmp_path / "all.json")] == ["lora", "lora", "ensemble", "ensemble"]
    text = readme.read_text()
    assert "| lora | 1 | " in text
    assert "| ensemble − lora | " in text
    written = (runs / "report.md").read_text()
    assert "| lora | 1 | " in written
    assert all(f"{name} {weight:g}" in written for name, weight in KL_WEIGHTS.items())
    lora, both = (finished[name][0][0] for name in ("lora", "ensemble"))
    d = results.differences([*finished["lora"][1], *finished["ensemble"][1]], draws=20)["ensemble"]
    for name, field in (("accuracy", "accuracy"), ("NLL", "nll"), ("Brier", "brier"), ("ECE", "ece")):
        assert d[name].difference == pytest.approx(getattr(both, field) - getattr(lora, field), abs=1e-6)
    assert d["AUROC error"].difference == pytest.approx(both.auroc_error - lora.auroc_error)
    ood = finished["ensemble"][0][1]
    assert d["AUROC prompts (epistemic)"].difference == pytest.approx(ood.auroc_ood - 0.5)
    monkeypatch.setattr(sys, "argv", [*command, "--train-size", "50"])
    assert results.MeldSentiment().main() == 2
    assert "train_size: 2500 there, 50 now" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setitem(KL_WEIGHTS, "blob", 0.5)
    assert results.MeldSentiment().main() == 2
    assert "kl_weights: {'blob': 0.001, " in capsys.readouterr().err


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results", "--data", str(tmp_path / "nowhere"), "--device", "cpu"])
    assert results.MeldSentiment().main() == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nowhere'} has no train_sent_emo.csv")
    monkeypatch.setattr(sys, "argv", ["results"])
    with pytest.raises(SystemExit):
        results.MeldSentiment().main()
    assert "--data" in capsys.readouterr().err
