"""One pass at a time: between threads, and in a process that is forked while a thread runs."""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro.poutine import runtime

from bayes_adapters import Batch, predict
from bayes_adapters.guides import MeanField
from bayes_adapters.inference._lock import exclusive
from tests.helpers import core_model, token_batch


def _predict_in_child(queue: Any, model: Any, guide: Any, batch: Batch) -> None:
    torch.set_num_threads(1)
    handlers = len(runtime._PYRO_STACK)
    queue.put((handlers, predict(model, guide, batch, num_samples=2).mean.tolist()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_process_forked_while_another_thread_predicts() -> None:
    """Without a new lock the child waits for ever for a thread that it does not have."""
    model = core_model("global")
    guide, batch = MeanField(model), token_batch(3, 4).without_targets()
    expected = predict(model, guide, batch, num_samples=2).mean
    inside, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[Batch]:
        with pyro.poutine.scale(scale=2.0):  # a handler that the child must not inherit
            inside.set()
            go_on.wait(60)
            yield batch

    thread = threading.Thread(target=lambda: predict(model, guide, slow(), num_samples=2))
    thread.start()
    assert inside.wait(60)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which is the point
        child = context.Process(target=_predict_in_child, args=(queue, model, guide, batch))
        child.start()
    try:
        handlers, found = queue.get(timeout=60)
    finally:
        child.kill()
        child.join()
        go_on.set()
        thread.join()
    assert handlers == 0
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-6)
    assert not runtime._PYRO_STACK


def test_others_wait_and_the_holder_does_not() -> None:
    order: list[str] = []

    def other() -> None:
        with exclusive():
            order.append("other")

    with exclusive(), exclusive():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("holder")
    thread.join(60)
    assert order == ["holder", "other"]


def test_an_error_lets_the_lock_go() -> None:
    with pytest.raises(ZeroDivisionError), exclusive():
        _ = 1 / 0
    done = threading.Event()

    def other() -> None:
        with exclusive():
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert done.wait(60)
    thread.join()


def test_draws_for_arviz_wait_for_a_prediction() -> None:
    """Both set the modes of the same modules, and run on Pyro's one stack of handlers."""
    pytest.importorskip("arviz")
    from bayes_adapters.analysis.arviz import to_arviz

    model = core_model("global")
    guide, batch = MeanField(model), token_batch(3, 4)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(to_arviz(model, guide, batch, num_samples=2)))
    with exclusive():
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        assert not found
    thread.join(60)
    assert found[0].posterior_predictive["obs"].shape == (1, 2, 3)
