"""Checkpoints of other runs and other data are refused, with what differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch.utils.data import DataLoader

from bayes_adapters import Gaussian
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField
from bayes_adapters.training import batches
from tests.refusals import refuses
from tests.training.parts import WHOLE, Items, data, file_in, history, join, pair, run, same, weights


def test_other_runs_are_refused_with_their_differences(tmp_path: Path) -> None:
    model, guide = pair()
    run(model, guide, checkpoint=tmp_path, epochs=1)
    before = file_in(tmp_path).read_bytes()

    def refused(*parts: Any, **options: Any) -> str:
        with refuses(ConfigError, file_in(tmp_path), "resume=False") as caught:
            run(*parts, **({"checkpoint": tmp_path, "epochs": 2} | options))
        return str(caught[0])

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
    eps = refused(*pair(), optimizer=lambda p: torch.optim.Adam([{"params": p, "eps": 1.0}], 0.01))
    assert "optimizer.options.0.eps: the checkpoint has '1e-08', this run '1.0'" in eps
    assert "optimizer.class" in refused(*pair(), optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    assert "scheduler" in refused(*pair(), scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2))
    assert "kl_weight: the checkpoint has 'Constant(" in refused(*pair(), kl_weight=lambda step: 1.0)
    assert "data.batch_size" in refused(*pair(), batches(WHOLE, 5, seed=7))
    other = pair()
    with torch.no_grad():
        other[0].backbone.embeddings.word_embeddings.weight.add_(1.0)
    assert "backbone" in refused(*other)
    assert file_in(tmp_path).read_bytes() == before
    fewer = data()
    fewer.drop_last = True
    assert "data.batches: the checkpoint has 6, this run 5" in refused(*pair(), fewer)


def _altered() -> Any:
    """A pair whose backbone differs in one entry that is none of 64 evenly spaced ones."""
    model, guide = pair()
    with torch.no_grad():
        model.backbone.embeddings.word_embeddings.weight.view(-1)[-1] += 1e-3
    return model, guide


def test_one_entry_of_the_backbone_makes_another_run(tmp_path: Path) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1)
    with refuses(ConfigError, "backbone_sha256", file_in(tmp_path)) as caught:
        run(*_altered(), checkpoint=tmp_path, epochs=2)
    assert "backbone:" not in str(caught[0]), "the sample does not see it"


def test_what_is_trained_of_the_backbone_may_have_changed(tmp_path: Path) -> None:
    model, guide = pair()
    model.backbone.encoder.layer[0].output.LayerNorm.weight.requires_grad_(True)
    run(model, guide, checkpoint=tmp_path, epochs=1)
    assert run(model, guide, checkpoint=tmp_path).steps == 12


def test_an_older_checkpoint_that_knows_a_sample_only_is_continued(tmp_path: Path) -> None:
    expected = pair()
    log = history(run(*expected))
    run(*pair(), checkpoint=tmp_path, epochs=1)
    whole = file_in(tmp_path).read_bytes()
    state = json.loads(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]["state"])
    del state["config"]["backbone_sha256"]
    text, tensors = json.dumps(state), load(whole)
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    file_in(tmp_path).write_bytes(save(tensors, {"state": text, "sha256": digest.hexdigest()}))
    model, guide = pair()
    assert history(run(model, guide, checkpoint=tmp_path)) == log
    assert same(weights(model, guide), weights(*expected))


class _Known(list):  # type: ignore[type-arg]
    """Batches that say what they are."""

    def __init__(self, identity: Any) -> None:
        super().__init__([WHOLE[:4], WHOLE[4:8]])
        self._identity = identity

    def identity(self) -> Any:
        return self._identity


def test_schedules_are_compared_by_what_they_say(tmp_path: Path) -> None:
    def step_lr(gamma: float) -> Any:
        return lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=gamma)

    options = {"checkpoint": tmp_path, "kl_weight": lambda step: 1.0, "scheduler": step_lr(0.5)}
    run(*pair(), **options, epochs=1)
    same_values = {"kl_weight": lambda step: 1.0 + 0 * step}
    assert run(*pair(), **options | same_values, epochs=2).steps == 12
    with refuses(ConfigError, "step 10", 1.0, 0.0):
        run(*pair(), **options | {"kl_weight": lambda step: float(step < 10)}, epochs=3)
    with refuses(ConfigError, "scheduler.gamma", 0.5, 0.1):
        run(*pair(), **options | {"scheduler": step_lr(0.1)}, epochs=3)


class _KnownItems(Items):
    """A data set that says what it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}


def _loader(name: str) -> Any:
    return DataLoader(_KnownItems(name), batch_size=4, collate_fn=join)


def _batches(name: str) -> Any:
    return batches(_KnownItems(name), 4, join)


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
    with refuses(ConfigError, where, "'old'", "'new'"):
        run(*pair(), make("new"), checkpoint=tmp_path, epochs=3)


def test_a_best_epoch_is_not_compared_across_validation_data(tmp_path: Path) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1, validation=_batches("old"))
    assert run(*pair(), checkpoint=tmp_path, epochs=2, validation=_batches("old")).steps == 12
    with refuses(ConfigError, "validation.dataset.name", "'old'", "'new'"):
        run(*pair(), checkpoint=tmp_path, epochs=3, validation=_batches("new"))


@pytest.mark.parametrize(
    ("identity", "says"),
    [(["a"], "list"), (3, "int"), ({"x": {1, 2}}, "set"), ({"x": float("nan")}, "float"), ({"x": WHOLE}, "Batch")],
)
def test_an_identity_that_is_no_json_is_refused_at_the_start(identity: Any, says: str, tmp_path: Path) -> None:
    model, guide = pair()
    before = weights(model, guide)
    with refuses(ConfigError, "_Known.identity()", says):
        run(model, guide, _Known(identity), checkpoint=tmp_path)
    assert same(weights(model, guide), before)
    assert run(model, guide, _Known(identity), epochs=1).steps == 2, "without a checkpoint nobody asks"
