"""Checkpoints: a run that was interrupted ends with the very numbers of one that never was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from bayes_adapters import Batch
from tests.training.parts import SETTINGS, Items, Stopping, data, history, join, pair, run, same, weights


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

    def __len__(self) -> int:
        return len(self.parts)

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


@pytest.mark.parametrize("own", ["none", "loader", "batch sampler"])
def test_a_shuffling_data_loader_continues_bit_exactly(own: str, tmp_path: Path) -> None:
    def loader() -> Any:
        generator = None if own == "none" else torch.Generator().manual_seed(1)
        if own == "batch sampler":
            order = BatchSampler(RandomSampler(Items(), generator=generator), 4, False)
            return DataLoader(Items(), batch_sampler=order, collate_fn=join)
        return DataLoader(Items(), batch_size=4, shuffle=True, collate_fn=join, generator=generator)

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
