"""Five body signals: checked data, folds of people, encoders that see training people only, baselines, and the grid."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Frames, predict
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from bayes_adapters.guides import Delta
from bayes_adapters.metrics import auc, nll
from bayes_adapters.models import LoRA
from bayes_adapters.records import Record, read_records
from examples import grid
from examples.body_signals import adapters, results
from examples.body_signals.data import CLIP, MODALITIES, Fold, Signals, load, make_fold
from examples.body_signals.differences import differences, mean_auc
from examples.body_signals.encoders import EncoderSettings, SignalEncoder, build_encoder, encode
from examples.body_signals.experiment import CONDITIONS, WITHHELD, average, condition_of, evaluate
from examples.body_signals.methods import METHODS, BestSingle, Joint, LateFusion, fit, fit_weights
from examples.body_signals.pretrain import PretrainSettings, Reconstruction, hide, losses_of, pretrain, pretrained
from examples.body_signals.probes import fit_probe, hand_features, pool
from examples.body_signals.records import Row
from examples.body_signals.task import Settings, Task
from examples.rows import read_rows, write_rows

SMALL = EncoderSettings(width=16, layers=1, heads=2, inner=16)
SETTINGS = Settings(PretrainSettings(SMALL, epochs=2, batch_size=16), validation=2)
PEOPLE, WINDOWS = 9, 12


def arrays() -> dict[str, np.ndarray]:
    """Windows in which stress raises conductance and heart rate, each person at a level of their own."""
    source = np.random.default_rng(0)
    people = np.repeat(np.arange(2, 2 + PEOPLE), WINDOWS)
    labels = np.tile((np.arange(WINDOWS) % 3 == 0).astype(np.int64), PEOPLE)
    out: dict[str, np.ndarray] = {"y": labels, "subject": people}
    for name, modality in MODALITIES.items():
        noise = source.normal(size=(len(labels), modality.samples, modality.channels))
        level = people[:, None, None] * 10.0 + source.normal(size=(len(labels), 1, 1))
        effect = {"EDA": 4.0, "HR": 1.0}.get(name, 0.0) * labels[:, None, None]
        out[name] = (noise + level + effect).astype(np.float32)
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "windows.npz"
    np.savez(path, **arrays())
    return path


@pytest.fixture(scope="module")
def signals(file: Path) -> Signals:
    return load(file)


@pytest.fixture(scope="module")
def task(signals: Signals, tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task.build(signals, 0, SETTINGS, tmp_path_factory.mktemp("encoders"))


# data


def test_what_is_in_the_file_is_what_is_loaded(signals: Signals) -> None:
    assert len(signals) == PEOPLE * WINDOWS
    assert {name: tuple(v.shape[1:]) for name, v in signals.values.items()} == {
        "BVP": (1920, 1),
        "ACC": (960, 3),
        "EDA": (120, 1),
        "TEMP": (120, 1),
        "HR": (30, 1),
    }
    assert torch.equal(signals.values["ACC"], torch.from_numpy(arrays()["ACC"]))
    assert signals.labels.sum() == PEOPLE * 4


def _nan(a: dict[str, np.ndarray]) -> None:
    a["EDA"][5, 7] = np.nan


def _infinite(a: dict[str, np.ndarray]) -> None:
    a["ACC"][3, 0, 1] = np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("HR"), "lacks HR; it holds y, subject, BVP"),
        (lambda a: a.pop("subject"), "lacks subject"),
        (
            lambda a: a.update(BVP=a["BVP"][:, :1000]),
            r"'BVP' .* of shape \(108, 1920, 1\).*is float32 of shape \(108, 1",
        ),
        (lambda a: a.update(HR=a["HR"].astype(int)), "'HR' .* must be floating point"),
        (lambda a: a.update(TEMP=a["TEMP"][:-1]), "'TEMP' .*107"),
        (_nan, r"'EDA' .* NaN or infinite in 1 windows, the first of them \[5\]"),
        (_infinite, r"'ACC' .* NaN or infinite in 1 windows, the first of them \[3\]"),
        (lambda a: a.update(y=a["y"] * 2), r"0 \(rest\) or 1 \(stress\); it also holds \[2\]"),
        (lambda a: a.update(y=a["y"].astype(float)), r"'y' .* must be integers of shape \(N,\); it is float64"),
        (lambda a: a.update(subject=a["subject"][:-1]), "108 labels and 107 person numbers"),
        (lambda a: a.update({k: v[:0] for k, v in a.items()}), "has 0 labels"),
    ],
)
def test_a_file_that_cannot_be_used(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    content = arrays()
    change(content)
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "bad.npz")


@pytest.mark.parametrize("kind", ["empty", "text", "npy", "pickle"])
def test_what_is_no_such_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    if kind == "npy":
        with path.open("wb") as handle:
            np.save(handle, np.zeros(3))
    elif kind == "pickle":
        np.savez(path, y=np.array([{}], dtype=object))
    else:
        path.write_bytes(b"" if kind == "empty" else b"not an archive")
    with pytest.raises(DataError, match=r"cannot be read as a NumPy \.npz file"):
        load(path)


def test_a_missing_file_says_where_data_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    with pytest.raises(MissingResourceError, match="italha-d/Stress-Predict-Dataset") as caught:
        load()
    for part in (str(tmp_path / "body_signals" / "windows.npz"), "--data", "BVP (N, 1920, 1) at 64 Hz", "subject (N,)"):
        assert part in str(caught.value)


def test_standardised_within_each_person_without_labels(signals: Signals) -> None:
    out = signals.standardised()
    for person in range(2, 2 + PEOPLE):
        own = out.values["ACC"][out.people == person].double()
        assert torch.allclose(own.mean((0, 1)), torch.zeros(3, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(own.std((0, 1), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-4)
    other = replace(signals, labels=1 - signals.labels).standardised()
    assert all(torch.equal(other.values[name], out.values[name]) for name in MODALITIES)
    moved = {k: torch.where((signals.people == 4)[:, None, None], 3 * v + 1, v) for k, v in signals.values.items()}
    again = replace(signals, values=moved).standardised()
    for name in MODALITIES:  # a person's unit and offset do not matter, to them or to others
        assert torch.allclose(again.values[name], out.values[name], atol=1e-3)


def test_outliers_are_limited(signals: Signals) -> None:
    spiked = {k: v.clone() for k, v in signals.values.items()}
    spiked["BVP"][0, 0] = 1e6
    assert replace(signals, values=spiked).standardised().values["BVP"].max() == CLIP


def test_a_dead_sensor_is_refused(signals: Signals) -> None:
    dead = dict(signals.values)
    dead["TEMP"] = torch.where((signals.people == 5)[:, None, None], 31.3, dead["TEMP"])
    with pytest.raises(DataError, match="TEMP of person 5 is constant over 12 windows"):
        replace(signals, values=dead).standardised()


@pytest.mark.parametrize("seed", range(7))
def test_nobody_is_in_two_splits(seed: int) -> None:
    fold = make_fold(range(2, 36), seed)
    parts = [set(fold.train), set(fold.validation), set(fold.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 34
    assert len(fold.validation) == 5
    assert len(fold.test) in {6, 7}
    assert Fold.from_json(fold.to_json()) == fold


def test_five_seeds_test_everybody_once_and_the_next_five_differently() -> None:
    first, second = ([make_fold(range(34), s).test for s in range(start, start + 5)] for start in (0, 5))
    assert sorted(p for part in first for p in part) == sorted(p for part in second for p in part) == list(range(34))
    assert set(first).isdisjoint(second)


@pytest.mark.parametrize(("people", "options"), [(6, {}), (34, {"folds": 1}), (34, {"validation": 0}), (3, {})])
def test_folds_that_cannot_be(people: int, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{people} people cannot be split"):
        make_fold(range(people), 0, **options)
    with pytest.raises(ConfigError, match="at least 0"):
        make_fold(range(34), -1)


# encoders


@pytest.mark.parametrize("name", list(MODALITIES))
def test_frames_of_samples_become_frames_of_seconds(name: str, signals: Signals) -> None:
    out = encode(build_encoder(name, SMALL, 0), signals.frames(name)[:5], batch_size=2)
    assert out.values.shape == (5, 30, 16)
    assert out.mask.all()
    assert not out.values.requires_grad


def test_masked_samples_change_nothing_but_their_own_second() -> None:
    encoder, values = build_encoder("EDA", SMALL, 0), torch.randn(3, 120, 1)
    mask = torch.ones(3, 120, dtype=torch.bool)
    mask[0, 41] = False  # one sample of second 10
    mask[2] = False
    changed = values.clone()
    changed[0, 40:44], changed[2] = 7.0, -3.0
    first, second = encoder.encode(Frames(values, mask)), encoder.encode(Frames(changed, mask))
    assert first.mask[0].tolist() == [s != 10 for s in range(30)]
    assert first.present.tolist() == [True, True, False]
    assert torch.equal(first.values[0, first.mask[0]], second.values[0, first.mask[0]])
    assert torch.equal(first.values[1], second.values[1])
    assert first.values.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 120, 3), (2, 118, 1), (2, 124, 1), (2, 0, 1)])
def test_another_signal_is_refused(shape: tuple[int, ...]) -> None:
    encoder = build_encoder("EDA", SMALL, 0)
    with pytest.raises(DataError, match=r"must be \(B, S, 1\) with S a multiple of 4"):
        encoder.encode(Frames(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool)))


@pytest.mark.parametrize("sizes", [{"width": 15}, {"layers": 0}])
def test_sizes_that_do_not_fit(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="multiple of the heads"):
        SignalEncoder(MODALITIES["HR"], replace(SMALL, **sizes))


def test_an_encoder_takes_adapters_and_is_a_backbone() -> None:
    encoder, signal = build_encoder("HR", SMALL, 0), torch.randn(4, 30, 1)
    frozen = encoder(signal).last_hidden_state
    model = LoRA(encoder, Bernoulli(), rank=2)
    assert model.layers == [f"transformer.encoder.layer.0.attention.self.{p}" for p in ("query", "value")]
    batch = Batch({"signal": signal})
    before = predict(model, Delta(model), batch).probs
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "backbone" in name:
                parameter.add_(0.5)
    assert before.shape == (4,)
    assert not torch.allclose(predict(model, Delta(model), batch).probs, before)
    with model.adapters_disabled():
        assert torch.equal(encoder(signal).last_hidden_state, frozen)


# pre-training


def test_runs_of_seconds_are_hidden_the_same_number_in_every_row() -> None:
    hidden = hide(200, 30, PretrainSettings(hidden=0.5, span=5), torch.Generator().manual_seed(0))
    assert (hidden.sum(-1) == 15).all()
    assert (hidden.unflatten(-1, (6, 5)).all(-1) == hidden.unflatten(-1, (6, 5)).any(-1)).all()
    assert (hidden.float().mean(0) - 0.5).abs().max() < 0.15
    most = hide(20, 30, PretrainSettings(hidden=0.99, span=7), torch.Generator().manual_seed(0))
    assert (~most).any(-1).all()  # something always stays visible


def test_the_loss_is_that_of_hidden_seconds_and_they_are_not_seen() -> None:
    encoder = build_encoder("EDA", SMALL, 0)
    model, hidden = Reconstruction(encoder), torch.zeros(2, 30, dtype=torch.bool)
    hidden[:, 4] = True
    signal = torch.randn(2, 120, 1)
    moved = signal.clone()
    moved[:, 16:20] += 1.0
    with torch.no_grad():
        embedded = torch.where(hidden[..., None], model.blank, encoder.patch(encoder.patches(signal)))
        rebuilt = model.head(encoder.embedded(embedded).last_hidden_state)[:, 4]
        wanted = [(rebuilt - s[:, 16:20, 0]).square().mean() for s in (signal, moved)]
        assert torch.allclose(model(signal, hidden), wanted[0])
        assert torch.allclose(model(moved, hidden), wanted[1])  # the same prediction: the second itself is not seen


def test_pre_training_learns_to_rebuild_and_depends_on_the_seed_alone() -> None:
    values = torch.randn(64, 1, 1) + 0.1 * torch.randn(64, 120, 1)  # hidden seconds follow from the visible ones
    settings = PretrainSettings(SMALL, epochs=12, batch_size=16, lr=5e-3)
    encoders = [build_encoder("EDA", SMALL, 3) for _ in range(2)]
    before = torch.random.get_rng_state()
    losses = [pretrain(encoder, values, settings, 3) for encoder in encoders]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.3 * losses[0][0]
    assert not any(p.requires_grad for p in encoders[0].parameters())
    assert not encoders[0].training


@pytest.mark.parametrize(("change", "message"), [({"hidden": 1.0}, "hidden must"), ({"span": 30}, "leave nothing")])
def test_pre_training_that_cannot_be(change: dict[str, float], message: str) -> None:
    settings = replace(SETTINGS.pretrain, **change)
    with pytest.raises(ConfigError, match=message):
        pretrain(build_encoder("HR", SMALL, 0), torch.randn(4, 30, 1), settings, 0)


def test_encoders_read_training_people_only_and_come_back_from_the_cache(signals: Signals, tmp_path: Path) -> None:
    everybody, fold = signals.standardised(), make_fold(signals.people.tolist(), 0, validation=2)
    foreign = ~torch.isin(everybody.people, torch.tensor(fold.train))[:, None, None]
    names = ("EDA", "HR")
    poisoned = {name: everybody.values[name].masked_fill(foreign, math.nan) for name in names}
    first = pretrained(replace(everybody, values=poisoned), fold, SETTINGS.pretrain, tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(name.split("-")[0] for name in files) == ["EDA", "HR"]
    assert all(len(losses_of(path)) == 2 for path in tmp_path.iterdir())
    whole = replace(everybody, values={name: everybody.values[name] for name in names})
    second = pretrained(whole, fold, SETTINGS.pretrain, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    for name in names:
        assert not any(p.requires_grad for p in second[name].parameters())
        for key, value in first[name].state_dict().items():
            assert torch.equal(value, second[name].state_dict()[key])


def test_other_people_settings_or_seeds_make_other_encoders(signals: Signals, tmp_path: Path) -> None:
    everybody = replace(signals.standardised(), values={"HR": signals.standardised().values["HR"]})
    fold, settings = make_fold(signals.people.tolist(), 0, validation=2), replace(SETTINGS.pretrain, epochs=1)
    for f, s in [
        (fold, settings),
        (replace(fold, train=fold.train[1:]), settings),
        (replace(fold, seed=1), settings),
        (fold, replace(settings, lr=1e-4)),
    ]:
        pretrained(everybody, f, s, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_broken_encoder_file_is_not_silently_replaced(signals: Signals, tmp_path: Path) -> None:
    everybody = replace(signals.standardised(), values={"HR": signals.standardised().values["HR"]})
    fold, settings = make_fold(signals.people.tolist(), 0, validation=2), replace(SETTINGS.pretrain, epochs=1)
    pretrained(everybody, fold, settings, tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="Delete it to train it again"):
        pretrained(everybody, fold, settings, tmp_path)


# probes


def test_a_probe_is_at_its_optimum() -> None:
    x, y = torch.randn(200, 3) * torch.tensor([1.0, 5.0, 0.1]), (torch.rand(200) < 0.3).long()
    probe = fit_probe(x, y, x, y, l2=[0.05])
    residual = probe.probs(x) - y
    assert abs(float(residual.mean())) < 1e-5  # the bias is not penalised
    gradient = probe.standardised(x).T @ residual / len(y) + 0.05 * probe.weight
    assert gradient.abs().max() < 1e-5


def test_the_weight_is_chosen_on_held_out_people() -> None:
    x, y = torch.randn(40, 30), torch.arange(40) % 2
    noise = torch.randn(200, 30), torch.arange(200) % 2
    assert fit_probe(x, y, *noise).l2 == 10.0
    assert fit_probe(x, y, x, y).l2 == 1e-3
    with pytest.raises(DataError, match=r"all \[0\]"):
        fit_probe(x, torch.zeros(40).long(), x, y)
    with pytest.raises(ConfigError, match="positive weights"):
        fit_probe(x, y, x, y, l2=[0.0])


def test_pooling_reads_real_frames_only() -> None:
    values = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.equal(pool(Frames(values, mask)), torch.tensor([[2.0, 1.0], [0.0, 0.0]]))


def test_hand_features_of_a_ramp_and_of_a_zigzag() -> None:
    ramp = torch.linspace(0, 2, 5)[None, :, None]
    zigzag = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])[None, :, None]
    expected = torch.tensor([1.0, math.sqrt(5 / 8), 0.0, 2.0, 2.0, 0.5, 0.0])
    assert torch.allclose(hand_features(ramp)[0], expected, atol=1e-6)
    assert torch.allclose(hand_features(zigzag)[0, [4, 5, 6]], torch.tensor([0.0, 2.0, 4.0]), atol=1e-6)
    assert hand_features(torch.randn(2, 960, 3)).shape == (2, 21)


# baselines


@pytest.mark.parametrize("method", list(METHODS))
def test_a_baseline_answers_from_what_is_present_alone(method: str, task: Task) -> None:
    fitted = fit(method, task, SETTINGS)
    whole = fitted.draws("test", list(MODALITIES))
    assert whole.shape == (1, len(task.signals["test"]))
    assert ((whole >= 0) & (whole <= 1)).all()
    assert auc(whole[0], task.signals["test"].labels) > 0.75
    lost = {
        split: {name: value if name in ("EDA", "BVP") else value * math.nan for name, value in part.items()}
        for split, part in fitted.features.items()
    }
    present = ["BVP", "EDA"]
    without = replace(fitted, features=lost).draws("test", present)
    assert without.isfinite().all()
    assert torch.equal(without, fitted.draws("test", present[::-1]))
    with pytest.raises(ConfigError, match="At least one modality"):
        fitted.draws("test", [])
    with pytest.raises(ConfigError, match=r"Unknown modality 'EDAA'\. Did you mean 'EDA'"):
        fitted.draws("test", ["EDAA"])


def test_best_single_is_the_best_on_validation_among_the_present(task: Task) -> None:
    fitted = fit("single-best", task, SETTINGS)
    assert isinstance(fitted, BestSingle)
    labels = task.signals["validation"].labels
    losses = [nll(fitted.probes[n].probs(fitted.features["validation"][n]), labels) for n in fitted.order]
    assert losses == sorted(losses)
    assert set(fitted.order[:2]) == {"EDA", "HR"}  # the made-up data's only effects
    best = fitted.order[0]
    second = fitted.order[1]
    present = [name for name in MODALITIES if name != best]
    own = fitted.probes[second].probs(fitted.features["test"][second])
    assert torch.equal(fitted.draws("test", present)[0], own)


def test_late_fusion_is_a_mixture_over_the_present(task: Task) -> None:
    plain, weighted = fit("late-average", task, SETTINGS), fit("late-weighted", task, SETTINGS)
    assert isinstance(plain, LateFusion)
    assert isinstance(weighted, LateFusion)
    assert weighted.logits is not None
    probs = {name: p.probs(plain.features["test"][name]) for name, p in plain.probes.items()}
    assert torch.allclose(plain.draws("test", ["EDA", "HR"])[0], (probs["EDA"] + probs["HR"]) / 2)
    weights = weighted.logits.softmax(0)
    assert weights.argmax() == list(MODALITIES).index("EDA")
    share = weights[2] / (weights[2] + weights[4])
    mixed = share * probs["EDA"] + (1 - share) * probs["HR"]
    assert torch.allclose(weighted.draws("test", ["EDA", "HR"])[0], mixed)


def test_weights_go_to_the_classifier_that_knows() -> None:
    labels = torch.arange(100) % 2
    probs = torch.stack([torch.full((100,), 0.5), 0.1 + 0.8 * labels, 0.9 - 0.8 * labels])
    weights = fit_weights(probs, labels).softmax(0)
    assert weights[1] > 0.9
    assert weights[1] > weights[0] > weights[2]


def test_the_joint_probe_takes_the_training_mean_of_a_withheld_stream(task: Task) -> None:
    fitted = fit("linear-all", task, SETTINGS)
    assert isinstance(fitted, Joint)
    x = torch.cat([fitted.features["test"][name] for name in MODALITIES], -1).double()
    z = fitted.probe.standardised(x)
    z[:, : 4 * 32], z[:, 5 * 32 :] = 0.0, 0.0  # HR is the last of five, 2 · 16 numbers each
    own = torch.sigmoid(z @ fitted.probe.weight + fitted.probe.bias)
    assert torch.allclose(fitted.draws("test", ["HR"])[0], own)


def test_unknown_method(task: Task) -> None:
    with pytest.raises(ConfigError, match=r"Unknown method 'late-avrage'\. Did you mean 'late-average'"):
        fit("late-avrage", task, SETTINGS)
    with pytest.raises(ConfigError, match=r"Unknown method 'wandr'\. Did you mean 'wander'"):
        adapters.train("wandr", task, 0)


# measuring


def test_conditions_average_over_every_set_of_withheld_streams(task: Task) -> None:
    fitted = fit("late-average", task, SETTINGS)
    records = {r.condition: r for r in evaluate(fitted, task, "late-average", 0)[0]}
    assert tuple(records) == CONDITIONS
    assert {(r.method, r.seed, r.split, r.n, r.samples) for r in records.values()} == {
        ("late-average", 0, "test", len(task.signals["test"]), 1)
    }
    for metric in ("auc", "nll", "ece", "accuracy"):
        for count, kind in (("without-1", "without"), ("without-4", "only")):
            single = [getattr(records[f"{kind}-{name}"], metric) for name in MODALITIES]
            assert getattr(records[count], metric) == pytest.approx(sum(single) / 5)
    labels = task.signals["test"].labels
    assert records["only-EDA"].auc == auc(fitted.draws("test", ["EDA"])[0], labels)
    assert records["without-EDA"].auc == auc(fitted.draws("test", ["BVP", "ACC", "TEMP", "HR"])[0], labels)
    assert records["all"].auc > records["without-EDA"].auc
    assert math.isnan(records["all"].auroc_ood)
    assert records["all"].epistemic == 0.0


def test_every_window_is_kept_with_every_set_of_streams_withheld(task: Task) -> None:
    fitted, people = fit("late-average", task, SETTINGS), task.signals["test"].people
    rows = evaluate(fitted, task, "late-average", 3)[1]
    windows = len(task.signals["test"])
    assert len(rows) == 31 * windows
    assert len({(r.condition, r.key) for r in rows}) == len(rows)
    assert {(r.method, r.seed) for r in rows} == {("late-average", 3)}
    without = [r for r in rows if r.condition == "without-BVP+EDA"]
    assert [r.probability for r in without] == fitted.draws("test", ["ACC", "TEMP", "HR"])[0].tolist()
    assert [r.label for r in without] == task.signals["test"].labels.tolist()
    assert [r.group for r in without] == [str(p) for p in people.tolist()]
    assert [r.key for r in without if r.group == str(int(people[0]))] == [f"{people[0]}/{i}" for i in range(WINDOWS)]
    assert all(r.epistemic == 0.0 and r.total == r.aleatoric > 0.0 for r in rows)


def test_what_was_fitted_is_counted(task: Task) -> None:
    each = 2 * SMALL.width + 1  # mean and deviation of every feature, and a bias
    counts = {"single-best": 5 * each, "late-average": 5 * each, "late-weighted": 5 * each + 5}
    counts |= {"linear-all": 5 * (each - 1) + 1, "linear-hand": 7 * 7 + 1}
    for method, count in counts.items():
        fitted = fit(method, task, SETTINGS)
        assert fitted.parameters == count, method
        assert {r.parameters for r in evaluate(fitted, task, method, 0)[0]} == {count}


def made_up(method: str, seed: int, shift: float, people: int = 3) -> list[Row]:
    """Two windows of rest and two of stress a person; ``shift`` raises stress, and fold 1 says more of everything."""
    said = []
    for withheld in WITHHELD:
        for person in range(people):
            for i, label in enumerate((0, 1, 0, 1)):
                p = 0.2 + 0.1 * ((3 * person + i) % 4) + shift * label + 0.2 * (seed % 2)
                key, group = f"{seed}-{person}/{i}", f"{seed}-{person}"
                said.append(Row(method, seed, condition_of(withheld), key, group, label, p, 0.5, 0.5, 0.0))
    return said


def test_predictions_survive_a_file(tmp_path: Path) -> None:
    rows = made_up("m", 4, 0.123456789)
    write_rows(tmp_path / "m.csv", Row, rows)
    for old, new in zip(rows, read_rows(tmp_path / "m.csv", Row), strict=True):
        assert new == old._replace(probability=pytest.approx(old.probability, abs=1e-9))
    (tmp_path / "m.csv").write_text("method,seed\n")
    with pytest.raises(DataError, match=r"first line of .*m\.csv must be method,seed,condition"):
        list(read_rows(tmp_path / "m.csv", Row))


def test_the_mean_auc_is_that_of_metrics_with_ties() -> None:
    probs, labels = torch.randint(0, 5, (40, 3)).double() / 5, torch.arange(40).double() % 2
    wanted = sum(auc(column, labels.long()) for column in probs.T) / 3
    assert mean_auc(probs, labels) == pytest.approx(wanted)
    assert math.isnan(mean_auc(probs, torch.ones(40, dtype=torch.float64)))


def test_differences_are_means_over_folds_with_intervals_over_people() -> None:
    rows = [row for seed in (0, 1) for m, s in (("concat-lora", 0.0), ("better", 0.25)) for row in made_up(m, seed, s)]
    found = differences(rows, folds=2, draws=50)
    assert list(found) == ["better"]
    assert list(found["better"]) == ["AUC", "NLL", "ECE", *(f"AUC, {k} withheld" for k in (1, 2, 3, 4))]

    def within(method: str) -> float:
        said = [[r for r in rows if (r.method, r.seed, r.condition) == (method, s, "all")] for s in (0, 1)]
        scores = [auc(torch.tensor([r.probability for r in f]), torch.tensor([r.label for r in f])) for f in said]
        return sum(scores) / 2

    for name, (difference, low, high) in found["better"].items():
        assert low <= difference <= high, name
        if name.startswith("AUC"):
            assert difference == pytest.approx(within("better") - within("concat-lora"))
            assert low < high
    assert found["better"]["NLL"].high < 0.0


def test_differences_need_whole_partitions_and_all_sets() -> None:
    rows = [row for seed in (0, 1, 2) for m in ("concat-lora", "m") for row in made_up(m, seed, 0.1)]
    whole = differences(rows, folds=2, draws=20)
    assert whole == differences([r for r in rows if r.seed < 2], folds=2, draws=20)
    assert whole["m"]["AUC"] == (0.0, 0.0, 0.0)
    assert differences([r for r in rows if (r.method, r.seed) != ("m", 1)], folds=2) == {}
    assert differences([], folds=2) == {}
    with pytest.raises(DataError, match="m seed 0 lacks predictions of some window"):
        differences([r for r in rows if (r.method, r.condition) != ("m", "without-EDA")], folds=2)
    with pytest.raises(ConfigError, match="Nothing was measured for the reference 'concat-lora'"):
        differences([r for r in rows if r.method == "m"], folds=2)


def test_tables_have_differences_when_a_partition_is_whole(tmp_path: Path) -> None:
    paths = [tmp_path / f"{m}-{s}.csv" for m in ("concat-lora", "m") for s in (0, 1)]
    for path in paths:
        method, seed = path.stem.rsplit("-", 1)
        write_rows(path, Row, made_up(method, int(seed), 0.1))
    records = [record(method=m, seed=s, parameters=70.0) for m in ("concat-lora", "m") for s in (0, 1)]
    found = results.tables(records, paths, folds=2)
    assert found["body_signals"][0].startswith("| method | seeds | trained | AUC |")
    assert "| m | 2 | 70 |" in found["body_signals"][3]
    assert found["body_signals_differences"][2].startswith("| m − concat-lora | +.000 [+.000, +.000] |")
    assert list(results.tables(records, paths, folds=5)) == ["body_signals"]
    assert list(results.tables(records[2:], paths, folds=2)) == ["body_signals"]


def record(condition: str = "all", **changes: Any) -> Record:
    return replace(Record("m", 0, "test", condition, 4, 0.5, 0.6, 0.6, 0.2, 0.1, 0.5, 0.5, 0.3, 1, 1.0), **changes)


def test_the_average_leaves_out_what_is_not_defined() -> None:
    mean = average([record(auc=0.5, auroc_error=math.nan), record(auc=0.7, auroc_error=0.9)])
    assert mean.auc == pytest.approx(0.6)
    assert mean.auroc_error == 0.9
    assert math.isnan(mean.total)
    with pytest.raises(DataError, match="one method, seed, split and size"):
        average([record(), record(n=5)])


# methods through the library


@pytest.mark.parametrize("method", ["concat-lora", "wander-released", "bayesian-wander"])
def test_adapted_methods_train_on_streams_that_are_withheld(task: Task, method: str) -> None:
    fitted = adapters.train(method, task, 0, adapters.AdapterSettings(epochs=1, samples=3))
    windows = len(task.signals["test"].labels)
    whole = fitted.draws("test", list(MODALITIES))
    assert whole.shape == ((3 if method.startswith("bayesian") else 1), windows)
    one = fitted.draws("test", ["EDA"])
    assert not torch.allclose(whole, one)
    assert bool(((one >= 0) & (one <= 1)).all())


def built(method: str, task: Task) -> adapters.Adapted:
    """An untrained method: the gate of Wander is closed."""
    fitted = adapters.train(method, task, 0, adapters.AdapterSettings(epochs=1, lr=0.0))
    assert isinstance(fitted, adapters.Adapted)
    return fitted


@pytest.mark.parametrize(("method", "reads"), [("wander", True), ("wander-released", False)])
def test_wander_reads_every_stream_but_the_released_residual_one(method: str, reads: bool, task: Task) -> None:
    fitted = built(method, task)
    whole, without = fitted.draws("test", list(MODALITIES)), fitted.draws("test", ["BVP", "ACC", "TEMP", "HR"])
    assert torch.equal(whole, without) is not reads


@pytest.mark.parametrize("present", [list(MODALITIES), ["EDA", "HR"]])
def test_encoders_that_have_run_are_the_encoders(present: list[str], task: Task) -> None:
    fitted = adapters.train("wander-released", task, 0, adapters.AdapterSettings(epochs=1, lr=0.1))
    assert isinstance(fitted, adapters.Adapted)
    encoders = torch.nn.ModuleDict({name: task.encoders[name] for name in MODALITIES})
    model, _ = adapters.ADAPTED["wander-released"].build(encoders, len(task.signals["train"]))
    trained = fitted.model.trainable_parameters()
    assert set(trained) == set(model.trainable_parameters())
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            parameter.copy_(trained[name])
    guide = Delta(model)
    guide.load_state_dict(fitted.guide.state_dict())
    again = replace(fitted, model=model, guide=guide, windows=task.signals)
    assert torch.allclose(again.draws("test", present), fitted.draws("test", present), atol=1e-5)


def test_lora_of_matched_size() -> None:
    def count(method: str) -> int:
        encoders = {name: build_encoder(name, EncoderSettings(), 0) for name in MODALITIES}
        for encoder in encoders.values():
            encoder.requires_grad_(False)
        kind = adapters.ADAPTED[method]
        streams = {name: adapters.Encoded(64) for name in MODALITIES} if kind.encoded else encoders
        model, guide = kind.build(torch.nn.ModuleDict(streams), 100)
        return adapters.Adapted(model, guide, {}, 1).parameters

    head = 5 * 64 + 1 + 5 * 64  # weights, bias, and what stands in for five missing streams
    assert count("concat-lora") == head + 5 * 2 * 2 * 2 * (64 + 64)
    factors = 5 * 2 * (8 * 64 + 30 * 8)
    assert count("wander") == head + factors + 5 * (8 * 64 + 8) + 2 * 5 * 64  # W and b, absent and gate
    assert abs(count("concat-lora-r4") - count("wander")) < 5 * 2 * 2 * (64 + 64) / 2  # no other rank is nearer
    assert count("bayesian-wander") == count("wander") + factors


def test_an_epoch_withholds_other_streams_and_never_all_of_them(task: Task) -> None:
    settings = adapters.AdapterSettings(withheld=0.9, batch_size=16)
    data = adapters.WindowBatches(task.signals["train"], settings, 0)

    def present(epoch: int) -> torch.Tensor:
        data.set_epoch(epoch)
        rows = []
        for batch in data:
            columns = [batch.inputs.get(f"{n}.present", torch.zeros(batch.size, dtype=torch.bool)) for n in MODALITIES]
            rows.append(torch.stack(columns, 1))
        return torch.cat(rows)

    first = present(0)
    assert first.any(1).all()
    assert torch.equal(first, present(0))
    assert not torch.equal(first, present(1))
    everything = adapters.WindowBatches(task.signals["train"], settings, None)
    assert all(bool(b.inputs[f"{n}.present"].all()) for b in everything for n in MODALITIES)


# the grid


def call(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results", *options])
    return results.BodySignals().main()


def test_the_grid_runs_and_continues(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(results, "Settings", lambda: SETTINGS)
    runs, out = tmp_path / "runs", tmp_path / "all.json"
    run_one = results.run_one

    def inside(module: str, methods: list[str], seeds: range, folder: Path, **options: Any) -> int:
        assert module == "examples.body_signals.results"
        for name in methods:
            for seed in seeds:
                if not (folder / f"{name}-{seed}.json").is_file():
                    run_one(name, seed, SETTINGS, file, folder)
        return 0

    for place in (grid, results):
        monkeypatch.setattr(place, "run_grid", inside)
    options = ["--data", str(file), "--seeds", "2", "--methods", "late-average", "--runs", str(runs), "--out", str(out)]
    assert call(monkeypatch, *options) == 0
    assert [(r.seed, r.condition) for r in read_records(out)] == [(s, c) for s in (0, 1) for c in CONDITIONS]
    folds = [Fold.from_json((runs / f"fold-{seed}.json").read_text()) for seed in (0, 1)]
    assert set(folds[0].test).isdisjoint(folds[1].test)
    assert "late-average   all               2" in capsys.readouterr().out
    done = (runs / "late-average-1.json").stat().st_mtime_ns
    (runs / "late-average-0.json").unlink()
    assert call(monkeypatch, *options) == 0
    assert (runs / "late-average-1.json").stat().st_mtime_ns == done
    assert len(read_records(out)) == 2 * len(CONDITIONS)
    assert {r.seed for r in read_rows(runs / "late-average-1.csv", Row)} == {1}
    other = tmp_path / "other.npz"
    np.savez(other, **(arrays() | {"y": 1 - arrays()["y"]}))
    assert call(monkeypatch, "--data", str(other), *options[2:]) == 2
    assert "were made with other settings (data: " in capsys.readouterr().err
    with monkeypatch.context() as changed:
        changed.setitem(results.ADAPTED, "wander", replace(results.ADAPTED["wander"], kl_weight=0.5))
        assert call(monkeypatch, *options) == 2
    assert "were made with other settings (kl_weights: " in capsys.readouterr().err
    (runs / "late-average-1.json").unlink()  # as if this run had been cut off while it wrote its predictions
    paths: list[Path] = []
    for place in (grid, results):
        monkeypatch.setattr(place, "run_grid", lambda *_, **__: 1)
    monkeypatch.setattr(results, "tables", lambda _records, found, _folds: paths.extend(found) or {})
    (tmp_path / "README.md").touch()
    assert call(monkeypatch, *options, "--readme", str(tmp_path / "README.md")) == 1
    assert paths == [runs / "late-average-0.csv"]


def test_one_run_in_a_process_of_its_own(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "cache"))
    name = ["--methods", "linear-hand", "--seeds", "1", "--jobs", "1", "--runs", str(tmp_path), "--data", str(file)]
    code = call(monkeypatch, *name, "--out", str(tmp_path / "all.json"))
    assert code == 0, "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert len(list((tmp_path / "cache" / "body_signals" / "encoders").glob("*.safetensors"))) == len(MODALITIES)
    best = next(r for r in read_records(tmp_path / "all.json") if r.condition == "all")
    assert best.auc > 0.75


def test_wrong_options_and_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(tmp_path / "no.npz"), "--runs", str(tmp_path / "runs")]
    assert call(monkeypatch, *options) == 2
    assert capsys.readouterr().err.startswith(f"error: There is no file {tmp_path / 'no.npz'}")
    assert not (tmp_path / "runs").exists()
    for wrong in (["--jobs", "0"], ["--methods", "late"]):
        with pytest.raises(SystemExit) as stopped:
            call(monkeypatch, *options, *wrong)
        assert stopped.value.code == 2
