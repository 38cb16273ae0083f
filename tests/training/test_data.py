"""What fit reads: batches in a repeatable order, and clear words about data it cannot use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from bayes_adapters import Batch, Bernoulli
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import CrossAttention, Delta
from bayes_adapters.models import FusionLoRA
from bayes_adapters.training import batches
from tests.helpers import CONTEXT, bert
from tests.refusals import refuses
from tests.training.parts import WHOLE, data, history, pair, run, same, weights


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 12), st.booleans(), st.booleans(), st.integers(-5, 5))
def test_every_example_comes_once(count: int, size: int, shuffle: bool, drop_last: bool, seed: int) -> None:
    items = list(range(count))

    def collate(rows: list[int]) -> Batch:
        return Batch({"x": torch.tensor(rows)})

    if drop_last and count < size:
        with refuses(DataError, count, size):
            batches(items, size, collate, drop_last=True)
        return
    source = batches(items, size, collate, shuffle=shuffle, seed=seed, drop_last=drop_last)
    got = [batch.inputs["x"].tolist() for batch in source]
    assert len(got) == len(source)
    flat = [number for rows in got for number in rows]
    assert len(set(flat)) == len(flat) == (count - count % size if drop_last else count)
    assert all(len(rows) == size for rows in got[:-1])
    if not shuffle:
        assert flat == items[: len(flat)]
    assert [batch.inputs["x"].tolist() for batch in source] == got


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        source = batches(WHOLE, 5, seed=seed)
        source.set_epoch(epoch)
        torch.randn(seed + 3)
        return torch.cat([b.ids for b in source]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_a_batch_keeps_its_parts_together() -> None:
    for part in data():
        for row, number in enumerate(part.ids.tolist()):
            assert torch.equal(part.inputs["input_ids"][row], WHOLE.inputs["input_ids"][number])
            assert torch.equal(part.context["audio"].values[row], WHOLE.context["audio"].values[number])
            assert WHOLE.targets is not None
            assert part.targets[row] == WHOLE.targets[number]


def test_bad_data_sets() -> None:
    with refuses(ConfigError, "batch_size", 1, 0):
        batches(WHOLE, 0)
    with refuses(ConfigError, "list", "collate="):
        batches([1, 2], 2)
    with refuses(DataError, 0, 2):
        batches([], 2, lambda rows: WHOLE)
    with refuses(DataError, "generator", "list(items)"):
        batches((i for i in range(3)), 2, lambda rows: WHOLE)


class _Bag:
    """An iterable whose items no type checker looks at."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


class _Once:
    """Reads the same generator every time."""

    def __init__(self) -> None:
        self.inner = iter([WHOLE[:4], WHOLE[4:8]])

    def __iter__(self) -> Any:
        return self.inner


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        (list, ("data",)),
        (lambda: iter(()), ("data", "list(data)")),
        (lambda: (b for b in [WHOLE]), ("data", "generator", "list(data)")),
        (_Once, (1, "list(data)")),
        (lambda: _Bag(WHOLE, (1, 2)), ("Item 1 of data", "a tuple", "collate_fn")),
        (lambda: [WHOLE, WHOLE.without_targets()], ("Batch 1 of data", "targets")),
    ],
)
def test_bad_data(source: Any, facts: tuple[object, ...]) -> None:
    model, guide = pair()
    with refuses(DataError, *facts):
        run(model, guide, source())


@pytest.mark.parametrize("fusion", [False, True])
def test_a_context_that_is_read_and_never_given(fusion: bool) -> None:
    parts = [WHOLE[:4], WHOLE[4:8], WHOLE[8:12]]
    deaf = [replace(part, context={}) for part in parts]
    masked = [pair()[0].withhold(part, "audio") for part in parts]

    def pair_of() -> Any:
        if not fusion:
            return pair(lambda model: CrossAttention(model, context_dim=CONTEXT))
        model = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT, rank=2)
        return model, Delta(model)

    for accumulate in (1, 2):
        with refuses(DataError, "'audio'", "Frames(values, mask)"):
            run(*pair_of(), deaf, epochs=1, accumulate=accumulate)
    assert run(*pair_of(), [*deaf, parts[0]], epochs=1).steps == 4
    assert run(*pair_of(), masked, epochs=1).steps == 3


def test_bad_validation() -> None:
    model, guide = pair()
    cases: list[tuple[Any, tuple[object, ...]]] = [
        ([], ("validation",)),
        ([WHOLE.without_targets()], ("Batch 0 of validation", "targets")),
        (iter([WHOLE]), ("validation", "list_iterator", "list(validation)")),
        (_Bag(3), ("Item 0 of validation", "a int")),
    ]
    for validation, facts in cases:
        with refuses(DataError, *facts):
            run(model, guide, validation=validation)


def test_an_iterator_serves_one_epoch_and_a_stream_serves_steps() -> None:
    assert run(*pair(), iter([WHOLE[:4]]), epochs=1).steps == 1
    with refuses(DataError, "batch"):
        run(*pair(), iter(()), epochs=1)
    endless = iter(lambda: WHOLE[:4], None)
    assert run(*pair(), endless, max_steps=5).steps == 5
    with refuses(DataError, "epoch 1", "list(data)"):
        run(*pair(), iter([WHOLE[:4]] * 3), max_steps=5)


def test_one_batch_is_data() -> None:
    one, two = pair(), pair()
    assert history(run(*one, WHOLE, validation=WHOLE)) == history(run(*two, [WHOLE], validation=[WHOLE]))
    assert same(weights(*one), weights(*two))


def test_max_steps_ends_within_an_epoch() -> None:
    result = run(*pair(), max_steps=8)
    assert (result.steps, len(result.history), result.stopped) == (8, 2, "completed")
    assert [log["step"] for log in result.history] == [6.0, 8.0]
    assert run(*pair(), epochs=1, max_steps=20).steps == 6


class _Stream(IterableDataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Any:
        yield from (WHOLE[i : i + 1] for i in range(3))


def test_a_loader_over_a_stream_is_told_the_epoch() -> None:
    source = _Stream()
    result = run(*pair(), DataLoader(source, batch_size=None))
    assert result.steps == 6
    assert source.epochs == [0, 1]


class _Augmented(list[int]):
    """A data set whose items depend on the epoch."""

    epochs: tuple[int, ...] = ()

    def set_epoch(self, epoch: int) -> None:
        self.epochs += (epoch,)


def test_a_data_set_behind_batches_is_told_the_epoch() -> None:
    source = _Augmented(range(4))
    run(*pair(), batches(source, 2, lambda numbers: WHOLE[torch.tensor(numbers)]), epochs=2)
    assert source.epochs == (0, 1)
