"""Checkpoints: a stopped run that is continued ends with the very numbers of one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from bayes_adapters import Batch, Bernoulli, Gaussian
from bayes_adapters.errors import AdapterFileError, ConfigError, DataError, NonFiniteError
from bayes_adapters.guides import MeanField
from bayes_adapters.training import batches, fit
from bayes_adapters.training._data import Batches
from tests.training.parts import WHOLE, Stopping, data, file_in, history, pair, run, same, weights

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "accumulate": 2,
    "scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=9),
    "validation": [WHOLE[:6]],
    "kl_weight": 0.1,
}


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A process started in the background may ignore SIGINT; here Ctrl-C always means KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def straight(**options: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    model, guide = pair()
    result = run(model, guide, **(SETTINGS | options))
    return weights(model, guide), history(result)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["epoch end", "data", "forward", "signal in step", "validation"])
def test_an_interrupted_run_continues_bit_exactly(where: str, accumulate: int, tmp_path: Path) -> None:
    """Adam's moments, a one-cycle schedule, dropout and posterior noise, with and without accumulation."""
    options = SETTINGS | {"accumulate": accumulate, "scheduler": None if accumulate == 1 else SETTINGS["scheduler"]}
    expected, log = straight(**options)
    model, guide = pair()
    if where == "epoch end":
        run(model, guide, checkpoint=tmp_path, **(options | {"epochs": 1}))
    else:
        with pytest.raises(KeyboardInterrupt):
            interrupted(where, model, guide, checkpoint=tmp_path, **options)
        stopped = weights(model, guide)
        fresh, other = pair()
        loaded = run(fresh, other, checkpoint=tmp_path, **(options | {"epochs": 1}))  # past it: only loads
        assert 6 / accumulate < loaded.steps <= 12 / accumulate
    model, guide = pair()
    with torch.no_grad():
        for parameter in [*model.trainable_parameters().values(), *guide.parameters()]:
            parameter.add_(1.0)
    result = run(model, guide, checkpoint=tmp_path, **options)
    assert same(weights(model, guide), expected)
    assert history(result) == log
    if where != "epoch end":
        assert not same(stopped, expected)


def interrupted(where: str, model: Any, guide: Any, **options: Any) -> None:
    """Run until Ctrl-C in the second epoch: from the data, a forward pass, the optimiser's step, or validation."""
    source = Stopping(1, 5, KeyboardInterrupt()) if where == "data" else data()
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += model.training
        if calls == 10:
            raise KeyboardInterrupt

    def press(optimizer: Any, *_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8 // options["accumulate"]:
            os.kill(os.getpid(), signal.SIGINT)

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        if where == "signal in step":
            optimizer.register_step_pre_hook(press)
        return optimizer

    if where == "forward":
        model.backbone.encoder.layer[1].register_forward_hook(hook)
    if where == "validation":
        options["validation"] = _Interrupting(options["validation"])
    run(model, guide, source, optimizer=make, **options)


class _Interrupting:
    """Validation batches; the second reading stops with Ctrl-C."""

    def __init__(self, parts: list[Batch]) -> None:
        self.parts, self.readings = parts, 0

    def __iter__(self) -> Any:
        self.readings += 1
        if self.readings == 2:
            raise KeyboardInterrupt
        yield from self.parts


@pytest.mark.parametrize("where", ["data", "forward", "signal in step"])
def test_ctrl_c_leaves_the_weights_of_the_last_complete_step(where: str, tmp_path: Path) -> None:
    steps = {"data": 2 * 3 - 1, "forward": 4, "signal in step": 4}[where]
    options = SETTINGS | {"validation": None}
    model, guide = pair()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted(where, model, guide, checkpoint=tmp_path, **options)
    assert signal.getsignal(signal.SIGINT) is handler
    other = pair()
    run(*other, **(options | {"epochs": None, "max_steps": steps}))
    assert same(weights(model, guide), weights(*other))
    assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])


def test_ctrl_c_works_without_a_checkpoint() -> None:
    model, guide = pair()
    with pytest.raises(KeyboardInterrupt):
        run(model, guide, Stopping(0, 2, KeyboardInterrupt()))


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    model, guide = pair()
    first = run(model, guide, checkpoint=tmp_path, **SETTINGS)
    end = weights(model, guide)
    model, guide = pair()
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    again = run(model, guide, checkpoint=tmp_path, **SETTINGS)
    assert calls == []
    assert again == first
    assert same(weights(model, guide), end)


def test_best_weights_survive_a_resume(tmp_path: Path) -> None:
    """The metric is best in epoch 0; the resumed run ends with that epoch's weights."""
    values = {0: 1.0, 1: 2.0, 2: 3.0}

    def score(model: Any, guide: Any) -> dict[str, float]:
        return {"score": values[len(seen)], "again": float(seen.append(1) or 0)}

    seen: list[int] = []
    model, guide = pair()
    run(model, guide, epochs=1, evaluate=score, monitor="score", checkpoint=tmp_path)
    first = weights(model, guide)
    model, guide = pair()
    result = run(model, guide, epochs=3, evaluate=score, monitor="score", checkpoint=tmp_path)
    assert (result.best_epoch, result.best_value, len(result.history)) == (0, 1.0, 3)
    assert same(weights(model, guide), first)


def test_resume_false_starts_anew(tmp_path: Path) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1)
    with pytest.raises(RuntimeError, match="crash"):
        run(*pair(), Stopping(0, 3, RuntimeError("crash")), checkpoint=tmp_path, epochs=1, resume=False)
    model, guide = pair()
    result = run(model, guide, checkpoint=tmp_path, epochs=2, resume=False)
    expected = pair()
    assert result.steps == 12
    assert history(result) == history(run(*expected, epochs=2))
    assert same(weights(model, guide), weights(*expected))


class _Items(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return WHOLE.size

    def __getitem__(self, i: int) -> tuple[Batch, float]:
        return WHOLE[torch.tensor([i])], float(torch.rand(()))


def _join(items: list[tuple[Batch, float]]) -> Batch:
    """Augments: the noise a data set draws must be continued as well."""
    rows = WHOLE[torch.cat([b.ids for b, _ in items])]
    frames = rows.context["audio"]
    noisy = type(frames)(frames.values * torch.tensor([n for _, n in items])[:, None, None], frames.mask)
    return Batch(rows.inputs, rows.targets, {"audio": noisy}, rows.index)


@pytest.mark.parametrize("own", [False, True])
def test_a_shuffling_data_loader_continues_bit_exactly(own: bool, tmp_path: Path) -> None:
    def loader() -> Any:
        generator = torch.Generator().manual_seed(1) if own else None
        return DataLoader(_Items(), batch_size=4, shuffle=True, collate_fn=_join, generator=generator)

    expected = pair()
    log = history(run(*expected, loader()))
    model, guide = pair()
    calls = 0

    def hook(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt

    handle = model.backbone.register_forward_hook(hook)
    source = loader()
    state = None if source.generator is None else source.generator.get_state()
    with pytest.raises(KeyboardInterrupt):
        run(model, guide, source, checkpoint=tmp_path)
    handle.remove()
    if state is not None:
        assert torch.equal(source.generator.get_state(), state)
    model, guide = pair()
    assert history(run(model, guide, loader(), checkpoint=tmp_path)) == log
    assert same(weights(model, guide), weights(*expected))


def test_other_runs_are_refused_with_their_differences(tmp_path: Path) -> None:
    model, guide = pair()
    run(model, guide, checkpoint=tmp_path, epochs=1)
    before = file_in(tmp_path).read_bytes()

    def refused(*parts: Any, **options: Any) -> str:
        with pytest.raises(ConfigError, match="another run") as caught:
            run(*parts, **({"checkpoint": tmp_path, "epochs": 2} | options))
        return str(caught.value)

    text = refused(*pair(rank=3), seed=4, kl_weight=0.5)
    for line in (
        "model.rank: the checkpoint has 2, this run 3",
        "settings.seed: the checkpoint has 0, this run 4",
        "kl_weight: ",
    ):
        assert line in text
    assert "model.alpha" not in text
    assert "guide.class" in refused(*pair(MeanField))
    assert "likelihood.class" in refused(*pair(likelihood=Gaussian()))
    assert "optimizer.lr" in refused(*pair(), optimizer=lambda p: torch.optim.Adam(p, lr=0.5))
    assert "optimizer.class" in refused(*pair(), optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    assert "scheduler" in refused(*pair(), scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2))
    assert "data.batch_size" in refused(*pair(), batches(WHOLE, 5, seed=7))
    other = pair()
    with torch.no_grad():
        other[0].backbone.embeddings.word_embeddings.weight.add_(1.0)
    assert "backbone" in refused(*other)
    assert file_in(tmp_path).read_bytes() == before
    fewer = data()
    fewer.drop_last = True
    assert "data.batches: the checkpoint has 6, this run 5" in refused(*pair(), fewer)


class _Known(list):  # type: ignore[type-arg]
    """Batches that say what they are."""

    def __init__(self, identity: Any) -> None:
        super().__init__([WHOLE[:4], WHOLE[4:8]])
        self._identity = identity

    def identity(self) -> Any:
        return self._identity


class _KnownItems(_Items):
    """A data set that says what it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}


def _loader(name: str) -> Any:
    return DataLoader(_KnownItems(name), batch_size=4, collate_fn=_join)


def _batches(name: str) -> Any:
    return batches(_KnownItems(name), 4, _join)


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda name: _Known({"name": name, "mix": {"clean": 0.5}}), "data.identity.name"),
        (_loader, "data.dataset.name"),
        (_batches, "data.dataset.name"),
    ],
)
def test_data_that_say_what_they_are_are_recognised(make: Any, where: str, tmp_path: Path) -> None:
    run(*pair(), make("old"), checkpoint=tmp_path, epochs=1)
    assert run(*pair(), make("old"), checkpoint=tmp_path, epochs=2).history[-1]["epoch"] == 1
    with pytest.raises(ConfigError, match=f"{where}: the checkpoint has 'old', this run 'new'"):
        run(*pair(), make("new"), checkpoint=tmp_path, epochs=3)


@pytest.mark.parametrize(
    ("identity", "says"),
    [(["a"], "list"), (3, "int"), ({"x": {1, 2}}, "set"), ({"x": float("nan")}, "float"), ({"x": WHOLE}, "Batch")],
)
def test_an_identity_that_is_no_json_is_refused_at_the_start(identity: Any, says: str, tmp_path: Path) -> None:
    model, guide = pair()
    before = weights(model, guide)
    with pytest.raises(ConfigError, match=rf"_Known\.identity\(\) .*{says}"):
        run(model, guide, _Known(identity), checkpoint=tmp_path)
    assert same(weights(model, guide), before)
    assert run(model, guide, _Known(identity), epochs=1).steps == 2, "without a checkpoint nobody asks"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1)
    whole = file_in(tmp_path).read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    flipped = bytearray(whole)
    flipped[8 + size + 5] ^= 1
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"]["state"] = header["__metadata__"]["state"].replace('"step", 6', '"step", 7')
    assert '"step", 7' in header["__metadata__"]["state"]
    text = json.dumps(header).encode()
    altered = struct.pack("<Q", len(text)) + text + whole[8 + size :]
    foreign = json.dumps({}).encode()
    for data_, message in [
        (whole[:-10], "cut short"),
        (whole[: size // 2], "cut short"),
        (b"", "cut short"),
        (bytes(flipped), "checksum"),
        (altered, "checksum"),
        (struct.pack("<Q", len(foreign)) + foreign, "not a readable checkpoint"),
    ]:
        file_in(tmp_path).write_bytes(data_)
        with pytest.raises(AdapterFileError, match=message):
            run(*pair(), checkpoint=tmp_path, epochs=1)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1)
    before = file_in(tmp_path).read_bytes()

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(*pair(), checkpoint=tmp_path, epochs=2)
    assert file_in(tmp_path).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [file_in(tmp_path).name]


def test_state_that_needs_pickle_is_refused_at_the_start(tmp_path: Path) -> None:
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self) -> dict[str, Any]:
            return {"what": object()}

    model, guide = pair()
    before = weights(model, guide)
    with pytest.raises(ConfigError, match=r"scheduler/what.*object"):
        run(model, guide, checkpoint=tmp_path, scheduler=lambda o: Odd(o, lambda t: 1.0))
    assert same(weights(model, guide), before)


def test_data_that_shrank_within_the_epoch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(*pair(), Stopping(0, 4, KeyboardInterrupt()), checkpoint=tmp_path)

    class Short(Batches):
        def __iter__(self) -> Any:
            return islice(super().__iter__(), 3)

    with pytest.raises(DataError, match="after 4 batches of epoch 0; the data now have only 3"):
        run(*pair(), Short(WHOLE, 4, None, True, 7, False), checkpoint=tmp_path)


def test_nan_stops_the_run_but_not_its_checkpoint(tmp_path: Path) -> None:
    model, guide = pair()
    run(model, guide, checkpoint=tmp_path, epochs=1)
    before = file_in(tmp_path).read_bytes()
    with pytest.raises(NonFiniteError):
        run(*pair(), Stopping(1, 2, NonFiniteError("x")), checkpoint=tmp_path, epochs=2)
    assert file_in(tmp_path).read_bytes() == before


def test_likelihood_parameters_are_kept(tmp_path: Path) -> None:
    model, guide = pair(likelihood=Gaussian())
    run(model, guide, checkpoint=tmp_path, epochs=1)
    other, other_guide = pair(likelihood=Gaussian())
    fit(
        other,
        other_guide,
        data(),
        epochs=1,
        progress=False,
        checkpoint=tmp_path,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    assert float(other.likelihood.log_scale.detach()) == float(model.likelihood.log_scale.detach()) != 0.0
    assert isinstance(pair()[0].likelihood, Bernoulli)


def test_running_means_of_the_head_are_continued(tmp_path: Path) -> None:
    def normed() -> tuple[Any, Any]:
        model, guide = pair()
        model.head = torch.nn.Sequential(torch.nn.BatchNorm1d(16), model.head)
        return model, guide

    expected = normed()
    run(*expected)
    run(*normed(), checkpoint=tmp_path, epochs=1)
    model, guide = normed()
    run(model, guide, checkpoint=tmp_path)
    assert float(model.head[0].running_mean.abs().sum()) > 0
    assert same(weights(model, guide), weights(*expected))
