"""The experiment on a handful of prompts: every method trains, predictions keep their order, the grid resumes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import predict, save
from bayes_adapters.backbones import speech_encoder, text_backbone
from bayes_adapters.errors import ConfigError
from bayes_adapters.layer import adapted_layers
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.records import read_records, write_records
from bayes_adapters.verify import VerifyTask
from examples.grid import gather
from examples.rows import read_rows, write_rows
from examples.verify_prompts import ablation, demo, results
from examples.verify_prompts.corpus import Corpus, PairBatches
from examples.verify_prompts.dataset import MISSING, collate
from examples.verify_prompts.experiment import (
    PLAIN,
    VERIFY_SAMPLES,
    Settings,
    Trained,
    evaluate,
    predict_all,
    risk_limit,
    task_description,
    train,
    validation_batches,
)
from examples.verify_prompts.features import FrameStore
from examples.verify_prompts.methods import DETERMINISTIC, METHODS, Build, build, find
from examples.verify_prompts.predictions import Prediction as Row
from examples.verify_prompts.prompts import Splits, load_prompts, make_splits

SETTINGS = Settings(
    epochs=1,
    batch_size=12,
    mix={"clean": 0.5, "white@0": 0.3, MISSING: 0.2},
    samples=3,
    conditions=("missing", "clean", "white@0", "ood-it"),
)
SIZES = {"train": 12, "validation": 11, "test": 7}


pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Short prompts only, a few of each split, English and Italian."""
    everything = load_prompts(("en", "it"))
    whole = make_splits(everything, 0)
    # twelve recordings of a second and more have more frames than a frame has numbers, as their density needs
    short = {p.key for p in everything if p.language == "en" and 1.0 <= p.seconds < 2.0}
    foreign = {p.key for p in everything if p.language == "it" and p.seconds < 2.0}
    parts = {name: tuple(k for k in getattr(whole, name) if k in short & foreign)[:n] for name, n in SIZES.items()}
    splits = Splits(parts["train"], parts["validation"], parts["test"], 0)
    keys = {key for part in parts.values() for key in part}
    prompts = [p for p in everything if p.key in keys]
    encoder, root = speech_encoder(), tmp_path_factory.mktemp("frames")
    stores = {
        name: FrameStore(
            [p for p in prompts if p.key in parts[name] and (p.language == "en" or name == "test")],
            splits,
            encoder=encoder,
            root=root,
        )
        for name in parts
    }
    return Corpus(prompts, splits, stores, text_backbone()[1])


@pytest.fixture(scope="module")
def trained(corpus: Corpus) -> Trained:
    return train(corpus, "caliber-x", 0, replace(SETTINGS, epochs=2))


@pytest.mark.filterwarnings("ignore:Every σ_q tried is feasible")  # tfb: after two steps B is close to 0
@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_and_predicts(corpus: Corpus, method: str) -> None:
    result = train(corpus, method, 0, SETTINGS)
    assert len(result.history) == 1
    assert all(math.isfinite(result.history[0][name]) for name in ("loss", "nll", "kl", "val_nll", "grad_norm"))
    has_kl = method not in DETERMINISTIC | {"mc-dropout", "tfb"}
    assert (result.history[0]["kl"] > 0.0) == has_kl
    layers = adapted_layers(result.model.backbone)
    assert len(layers) == (60 if find(method).hears else 12)  # six in each of 6 + 4 blocks; query and value of 6
    assert all(bool(layer.lora_B.abs().max() > 0) for layer in layers.values())
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B.normal_(0.0, 0.3)  # after two steps B is too small for its draws to show
            for path in layer.inter.values():
                path.lora_B.normal_(0.0, 0.3)
    clean = (corpus.heard() if find(method).hears else corpus).evaluation("test", "clean")
    prediction, order = predict_all(result, clean, SETTINGS)
    assert sorted(order.tolist()) == list(range(2 * SIZES["test"]))
    assert prediction.num_samples == (1 if method in DETERMINISTIC else 3)
    assert bool((prediction.epistemic > 1e-6).all()) == (method not in DETERMINISTIC)


def test_a_posterior_over_weights_knows_how_many_pairs_there_are(corpus: Corpus) -> None:
    result = train(corpus, "blob", 0, SETTINGS)
    assert result.model.num_data == 24
    with pytest.raises(ConfigError, match="num_data"):
        build("blob", Build(corpus.backbone(), corpus.frame_width))


def test_a_method_may_bring_its_own_kl_weight(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, kl_weight=0.125)
    assert find("c-lora").kl_weight is None
    assert train(corpus, "c-lora", 0, settings).history[0]["kl_weight"] == 0.125
    assert train(corpus, "blob", 0, settings).history[0]["kl_weight"] == find("blob").kl_weight != 0.125
    monkeypatch.setitem(METHODS, "c-lora", replace(find("c-lora"), kl_weight=0.25))
    assert train(corpus, "c-lora", 0, settings).history[0]["kl_weight"] == 0.25


@pytest.mark.filterwarnings("ignore:Every σ_q tried is feasible")
def test_tfb_is_the_trained_lora_with_noise_around_it(corpus: Corpus) -> None:
    plain, noisy = (train(corpus, method, 0, SETTINGS) for method in ("lora-text", "tfb"))
    assert [h["val_nll"] for h in plain.history] == [h["val_nll"] for h in noisy.history]
    assert (type(noisy.model).__name__, type(noisy.guide).__name__) == ("StochasticDown", "TrainingFree")
    batches = validation_batches(corpus, SETTINGS)
    mean = predict(noisy.model, noisy.guide, batches, mean_only=True).probs
    torch.testing.assert_close(mean, predict(plain.model, plain.guide, batches).probs, rtol=1e-5, atol=1e-6)


def test_a_seed_repeats_and_another_differs(corpus: Corpus, trained: Trained) -> None:
    again, other = (train(corpus, "caliber-x", seed, replace(SETTINGS, epochs=2)) for seed in (0, 1))
    dataset = corpus.evaluation("test", "clean")
    found = [predict_all(t, dataset, SETTINGS)[0].probs for t in (trained, again, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_only_guides_that_read_frames_weigh_them(corpus: Corpus, trained: Trained) -> None:
    assert trained.guide.reliability.density.components == 2  # clean and white@0; withheld audio has no frames
    assert (trained.guide.reliability.fallback, trained.guide.reliability.scale) == ("widen", 1.0)
    parts = Build(corpus.backbone(), corpus.frame_width)
    _, guide = build("caliber-g", parts)
    assert guide.reliability is None
    with pytest.raises(ConfigError, match=r"Unknown method 'caliber-y'.*Did you mean 'caliber-x'"):
        build("caliber-y", parts)


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
    with pytest.raises(ConfigError, match="verify reads frozen frames, and cola adapts the speech encoder"):
        task_description(corpus, result, SETTINGS)


def test_validation_batches_hold_every_pair_once(corpus: Corpus) -> None:
    dataset = corpus.evaluation("validation", "clean")
    seen: Counter[tuple[tuple[int, ...], float]] = Counter()
    withheld = 0
    for batch in validation_batches(corpus, SETTINGS):
        for row in range(batch.size):
            ids = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row].bool()]
            seen[tuple(ids.tolist()), float(batch.targets[row])] += 1
        present = batch.context["audio"].present
        assert bool(present.all()) or not bool(present.any()), "a batch has one condition"
        withheld += int((~present).sum())
    assert seen == Counter(
        (item.input_ids, float(item.label)) for item in map(dataset.__getitem__, range(len(dataset)))
    )
    assert 0 < withheld < len(dataset) / 2
    first, second = (validation_batches(corpus, SETTINGS) for _ in range(2))
    assert all(
        torch.equal(a.context["audio"].values, b.context["audio"].values) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_length_batches_hold_every_example_once(corpus: Corpus, shuffle: bool) -> None:
    batches = PairBatches(corpus.training(PLAIN, seed=0), 5, shuffle=shuffle)
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append([batch.ids.tolist() for batch in batches])
        assert len(orders[-1]) == len(batches) == 5
        assert sorted(i for rows in orders[-1] for i in rows) == list(range(24))
    assert orders[0] == orders[2]
    assert (orders[0] != orders[1]) or not shuffle


def test_length_batches_say_what_they_are(corpus: Corpus) -> None:
    mix = {"clean": 0.5, MISSING: 0.5}

    def identity(size: int = 5, shuffle: bool = True, seed: int = 0, **options: Any) -> dict[str, Any]:
        training = corpus.training(**({"mix": mix, "seed": 0} | options))
        return PairBatches(training, size, shuffle=shuffle, seed=seed).identity()

    base = identity()
    assert identity() == json.loads(json.dumps(base)) == base
    assert (base["batch_size"], base["shuffle"], base["seed"]) == (5, True, 0)
    assert (base["dataset"]["examples"], base["dataset"]["conditions"], base["dataset"]["seed"]) == (24, mix, 0)
    others = [
        identity(6), identity(shuffle=False), identity(seed=1), identity(mix=PLAIN), identity(hard=0.5),
        PairBatches(corpus.training(mix, seed=1), 5, shuffle=True).identity(),
        PairBatches(corpus.evaluation("validation", "clean"), 5, shuffle=True).identity(),
    ]  # fmt: skip
    dataset = corpus.training(mix, seed=0)
    dataset.pairs[0], dataset.pairs[2] = dataset.pairs[2], dataset.pairs[0]
    others.append(PairBatches(dataset, 5, shuffle=True).identity())
    assert all(other != base for other in others)
    later = PairBatches(corpus.training(mix, seed=0), 5, shuffle=True)
    later.set_epoch(3)
    assert later.identity() == base, "an interrupted run is at a later epoch"


def test_a_run_is_not_continued_on_other_data(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, "lora-text", 0, SETTINGS, tmp_path)
    assert len(train(corpus, "lora-text", 0, SETTINGS, tmp_path).history) == 1
    changed = replace(SETTINGS, mix={"clean": 0.6, "white@0": 0.2, MISSING: 0.2})
    with pytest.raises(ConfigError, match=r"data\.identity\.dataset\.conditions\.clean: the checkpoint has 0\.5"):
        train(corpus, "lora-text", 0, changed, tmp_path)


@pytest.fixture(scope="module")
def evaluated(corpus: Corpus, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run called lora-text-0, though another method's numbers are in it."""
    folder = tmp_path_factory.mktemp("runs")
    records, rows = evaluate(corpus, trained, SETTINGS)
    write_records(folder / "lora-text-0.json", [replace(record, method="lora-text") for record in records])
    write_rows(folder / "lora-text-0.csv", Row, [row._replace(method="lora-text") for row in rows])
    return folder


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


def test_the_grid_repeats_no_finished_run_and_reports_a_crashed_one(evaluated: Path) -> None:
    (evaluated / "checkpoints").write_text("a file where the runs want a folder")
    before = {name: (evaluated / name).read_bytes() for name in ("lora-text-0.json", "lora-text-0.csv")}
    out = evaluated / "all.json"
    command = [
        sys.executable,
        "-m",
        "examples.verify_prompts.results",
        "--device",
        "cpu",
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    command += ["--methods", "lora-text", "c-lora", "--runs", str(evaluated), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    log = evaluated / "c-lora-0.log"
    assert f"c-lora seed 0: FAILED, see {log}" in done.stderr
    assert "FileExistsError" in log.read_text() or "NotADirectoryError" in log.read_text()
    assert not (evaluated / "lora-text-0.log").exists()
    assert before == {name: (evaluated / name).read_bytes() for name in before}
    assert {r.method for r in read_records(out)} == {"lora-text"}
    assert "lora-text" in (evaluated / "report.md").read_text()


def test_nothing_finished_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gather(["lora-text"], [0, 1], tmp_path, tmp_path / "all.json") == []
    assert not (tmp_path / "all.json").exists()


def test_the_ablation_is_a_grid_that_refuses_other_settings(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Corpus, "load", lambda: corpus)
    small = replace(SETTINGS, reliability=False, conditions=("clean",))
    monkeypatch.setitem(ablation.VARIANTS, "plain", small)
    monkeypatch.setitem(ablation.VARIANTS, "prior-1", replace(small, prior_scale=1.0))
    runs, out = tmp_path / "runs", tmp_path / "deeper" / "ablation.json"
    options = ["--device", "cpu", "--seeds", "1", "--runs", str(runs), "--out", str(out)]
    runs.mkdir()
    for name in ("plain", "prior-1"):
        monkeypatch.setattr(sys, "argv", ["ablation", *options, "--one", name, "0"])
        assert ablation.Ablation().main() == 0
    before = (runs / "plain-0.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["ablation", *options, "--variants", "plain", "prior-1"])
    assert ablation.Ablation().main() == 0, (
        capsys.readouterr().err
    )  # both are done: nothing is run, the records are gathered
    assert [record.method for record in read_records(out)] == ["plain", "prior-1"]
    assert read_records(out)[0].nll != read_records(out)[1].nll
    assert (runs / "plain-0.json").read_bytes() == before
    assert json.loads((runs / "prior-1" / "settings.json").read_text())["prior_scale"] == 1.0
    monkeypatch.setitem(ablation.VARIANTS, "plain", replace(small, kl_weight=0.5))
    assert ablation.Ablation().main() == 2
    assert "kl_weight: 0.0001 there, 0.5 now" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["ablation", *options, "--variants", "prior-1"])
    assert ablation.Ablation().main() == 2  # its records would be gathered too
    assert "kl_weight: 0.0001 there, 0.5 now" in capsys.readouterr().err
    (runs / "plain" / "settings.json").unlink()
    assert ablation.Ablation().main() == 2
    assert "records of 'plain', such as plain-0.json, and nothing says" in capsys.readouterr().err
    (runs / "plain-0.json").unlink()
    assert ablation.Ablation().main() == 0
    assert [record.method for record in read_records(out)] == ["prior-1"]


def test_the_variants_tell_prior_and_kl_weight_apart() -> None:
    plain, wide, light, both = (ablation.VARIANTS[n] for n in ("plain", "prior-1", "kl-x0.1", "wide-prior"))
    assert replace(plain, prior_scale=1.0) == wide
    assert replace(plain, kl_weight=1e-5) == light
    assert replace(wide, kl_weight=1e-5) == both


@pytest.mark.parametrize("name", list(ablation.VARIANTS))
def test_every_variant_is_a_mix_that_can_be_trained_on(name: str, corpus: Corpus) -> None:
    variant = ablation.VARIANTS[name]
    assert len(corpus.training(variant.mix, seed=0)) == 24
    assert variant.conditions[0] == "clean"
    if name == "all":
        assert replace(variant, conditions=Settings().conditions) == Settings()


MAINS: dict[str, Callable[[], int]] = {
    "demo": demo.main,
    "results": results.ScriptVerification().main,
    "ablation": ablation.Ablation().main,
}


@pytest.mark.parametrize("name", list(MAINS))
@pytest.mark.parametrize(
    ("device", "message"),
    [
        pytest.param(
            "cuda",
            "The device 'cuda' cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU"),
        ),
        ("nonsense", "The device 'nonsense' cannot be used"),
    ],
)
def test_a_device_that_is_not_there(
    name: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--device", device])
    assert MAINS[name]() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert "Take 'cpu', 'cuda' or 'auto'" in error


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("demo", ["--methods", "caliber-y"]),
        ("results", ["--methods", "caliber-y"]),
        ("results", ["--jobs", "0"]),
        ("ablation", ["--variants", "caliber-y"]),
    ],
)
def test_wrong_options(
    name: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *options])
    with pytest.raises(SystemExit) as stopped:
        MAINS[name]()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert ("invalid choice: 'caliber-y'" in error and "choose from" in error) or "--jobs and --seeds" in error
