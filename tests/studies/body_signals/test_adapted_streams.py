"""Methods through the library, on streams that are withheld while they train."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bayes_adapters.guides import Delta
from examples.studies.body_signals import adapters
from examples.studies.body_signals.data import MODALITIES
from examples.studies.body_signals.encoders import EncoderSettings, build_encoder
from examples.studies.body_signals.task import Task


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
    assert abs(count("concat-lora-r7") - count("bayesian-wander")) < 5 * 2 * 2 * (64 + 64) / 2


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
