"""Pre-training rebuilds hidden seconds, and its encoders see training people only."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayes_adapters.errors import ConfigError, DataError
from examples.studies.body_signals.data import Signals, make_fold
from examples.studies.body_signals.encoders import build_encoder
from examples.studies.body_signals.pretrain import (
    PretrainSettings,
    Reconstruction,
    hide,
    losses_of,
    pretrain,
    pretrained,
)
from tests.refusals import refuses
from tests.studies.body_signals.parts import SETTINGS, SMALL


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


@pytest.mark.parametrize(("change", "facts"), [({"hidden": 1.0}, ("hidden", 1.0)), ({"span": 30}, (30,))])
def test_pre_training_that_cannot_be(change: dict[str, float], facts: tuple[object, ...]) -> None:
    settings = replace(SETTINGS.pretrain, **change)
    with refuses(ConfigError, *facts):
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
    (tmp_path / "made").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1, "others may read what umask lets them"


def test_a_broken_encoder_file_is_not_silently_replaced(signals: Signals, tmp_path: Path) -> None:
    everybody = replace(signals.standardised(), values={"HR": signals.standardised().values["HR"]})
    fold, settings = make_fold(signals.people.tolist(), 0, validation=2), replace(SETTINGS.pretrain, epochs=1)
    pretrained(everybody, fold, settings, tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with refuses(DataError, path):
        pretrained(everybody, fold, settings, tmp_path)
