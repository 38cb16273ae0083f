"""What a batch accepts, and what it says of one that it does not."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.utils.data import DataLoader

from bayes_adapters import Batch, Bernoulli, Frames
from bayes_adapters.errors import DataError
from bayes_adapters.guides import CrossAttention
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.models import FusionLoRA
from tests.helpers import CONTEXT, bert, core_model, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses


def test_the_annotations_of_the_package_are_checked() -> None:
    """If the instrumentation were lost, every other test would still pass: core, models and guides must each object."""
    with pytest.raises(TypeCheckError):
        Frames(torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool))
    with pytest.raises(BeartypeCallHintViolation):
        FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT).outputs(torch.zeros(5), token_batch())
    guide = CrossAttention(core_model(), context_dim=CONTEXT, dim=4)
    with pytest.raises(BeartypeCallHintViolation):
        guide.reader._split(torch.zeros(3))


def test_rows_keep_their_number_in_the_data_set() -> None:
    batch = token_batch()
    part = batch[torch.tensor([4, 1])]
    assert part.ids.tolist() == [4, 1]
    assert part[1:].ids.tolist() == [1]
    assert batch[3:].ids.tolist() == [3, 4]
    assert torch.equal(part.context["audio"].values, batch.context["audio"].values[[4, 1]])
    assert torch.equal(part.targets, batch.targets[[4, 1]])
    assert batch[torch.tensor([True, False, False, True, False])].ids.tolist() == [0, 3]


def test_without() -> None:
    batch = token_batch()
    assert batch.without("audio").context == {}
    assert batch.without("video").context.keys() == {"audio"}
    assert batch.without_targets().targets is None
    assert batch.targets is not None


def test_to_moves_every_tensor() -> None:
    part = token_batch()[:2]
    ids = {"input_ids": part.inputs["input_ids"]}  # a mask is looked at, which the meta device cannot do
    moved = Batch(ids, part.targets, part.context, part.index).to("meta")
    tensors = [
        *moved.inputs.values(),
        moved.targets,
        moved.context["audio"].values,
        moved.context["audio"].mask,
        moved.index,
    ]
    assert {t.device.type for t in tensors} == {"meta"}


def test_frames_mean_and_presence() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    values = torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [5.0], [5.0]]])
    frames = Frames(values.half(), mask)
    assert frames.mean().tolist() == [[2.0], [0.0]]
    assert frames.mean().dtype == torch.float32
    assert frames.present.tolist() == [True, False]
    assert frames[1:].present.tolist() == [False]


IDS = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize("name", ["labels", "label", "label_ids", "text.labels"])
def test_labels_are_no_input(name: str) -> None:
    with refuses(DataError, f"inputs['{name}']", "targets="):
        Batch({"input_ids": IDS, name: torch.zeros(2)})


def test_a_batch_is_checked_where_its_parts_come_together_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a mask waits for the device, so what is made of a checked batch is not looked at again."""
    looked: list[int] = []
    batch = token_batch()
    monkeypatch.setattr("bayes_adapters.data.batch.check_masks", lambda inputs: looked.append(len(inputs)))
    parts = [batch.to("cpu"), batch[1:3], batch[torch.tensor([2])], batch.without("audio"), batch.without_targets()]
    assert not looked
    assert [part.size for part in parts] == [5, 2, 1, 5, 5]
    Batch(batch.inputs)
    assert looked == [2]


@pytest.mark.parametrize("rows", [slice(5, None), torch.zeros(5, dtype=torch.bool), torch.zeros(0, dtype=torch.long)])
def test_no_rows_are_no_batch(rows: Any) -> None:
    with refuses(DataError, "0 examples"):
        token_batch()[rows]


def test_targets_of_several_tasks_are_checked() -> None:
    ids: dict[str, Tensor] = {"input_ids": IDS}
    for targets, facts in (({}, ("targets", "task → tensor", None)), ({"a": torch.zeros(3)}, ("targets['a']", 3, 2))):
        with refuses(DataError, *facts):
            Batch(ids, targets)


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (lambda: Batch({}), ("inputs={'input_ids': ids}",)),
        (lambda: Batch({"input_ids": IDS}, torch.zeros(3)), ("inputs['input_ids']", 2, "'targets': 3")),
        (lambda: Batch({"input_ids": IDS}, torch.tensor(1.0)), ("targets", "a tensor without dimensions")),
        (lambda: Batch({"input_ids": IDS}, index=torch.arange(3)), ("inputs['input_ids']", 2, "'index': 3")),
        (lambda: Batch({"input_ids": IDS}, context={"audio": _frames(3)}), ("context['audio']", 3)),
        (lambda: Batch({"input_ids": IDS[:0]}), ("0 examples",)),
        (
            lambda: Batch({"input_ids": IDS, "attention_mask": torch.tensor([[1, 0, 0], [0, 0, 0]])}),
            ("attention_mask", [1]),
        ),
    ],
)
def test_batch_errors(build: Any, facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        build()


@pytest.mark.parametrize(
    ("values", "mask", "facts"),
    [
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), ("(B, S, d)", "(2, 3)")),
        (torch.zeros(2, 3, 4, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool), ("torch.int64",)),
        (torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), ("mask", "(2, 4)", "(2, 3, 4)")),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), ("torch.float32",)),
    ],
)
def test_frames_errors(values: Tensor, mask: Tensor, facts: tuple[object, ...]) -> None:
    """The checks themselves: under the tests' instrumentation the annotations object first."""
    frames = object.__new__(Frames)
    object.__setattr__(frames, "values", values)
    object.__setattr__(frames, "mask", mask)
    with refuses(DataError, *facts):
        frames.__post_init__()


def _frames(size: int) -> Frames:
    return Frames(torch.zeros(size, 2, CONTEXT), torch.ones(size, 2, dtype=torch.bool))


@pytest.mark.parametrize("index", [torch.arange(5.0), torch.arange(5).int(), torch.arange(5)[:, None]])
def test_an_index_counts(index: Tensor) -> None:
    batch = token_batch()
    with unchecked(), refuses(DataError, "index", "int64", (5,), index.dtype, tuple(index.shape)):
        Batch(batch.inputs, None, batch.context, index)


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS, Pooling.LAST])
def test_pooling_sees_no_padding_on_either_side(pooling: Pooling) -> None:
    hidden = torch.randn(3, 4, 2)
    around = torch.cat([torch.full((3, 2, 2), 9.0), hidden, torch.full((3, 1, 2), 9.0)], 1)
    mask = torch.tensor([[False] * 2 + [True] * 4 + [False]]).expand(3, 7)
    torch.testing.assert_close(pooling(around, mask), pooling(hidden, None))


class Pinnable(Tensor):
    """A tensor that says whether it was pinned, on a machine that has nothing to pin for."""

    pinned = False

    def pin_memory(self, device: Any = None) -> Tensor:
        found = self.clone().as_subclass(Pinnable)
        found.pinned = True
        return found


def test_every_tensor_of_a_batch_is_pinned() -> None:
    whole = replace(token_batch(targets=torch.zeros(5)), index=torch.arange(5))._moved(_pinnable)
    several = replace(whole, targets={"a": torch.zeros(5), "b": torch.ones(5)})._moved(_pinnable)
    for batch, count in ((whole, 6), (several, 7)):
        parts = _tensors(batch.pin_memory())
        assert len(parts) == count
        assert all(part.pinned for part in parts)  # type: ignore[attr-defined]
        assert all(torch.equal(pinned, part) for pinned, part in zip(parts, _tensors(batch), strict=True))


def _pinnable(part: Any) -> Any:
    if isinstance(part, Frames):
        return Frames(_pinnable(part.values), _pinnable(part.mask))
    return part.as_subclass(Pinnable)


def _tensors(batch: Batch) -> list[Tensor]:
    targets = batch.targets if isinstance(batch.targets, dict) else {"": batch.targets}
    frames = [part for each in batch.context.values() for part in (each.values, each.mask)]
    return [*batch.inputs.values(), *targets.values(), batch.index, *frames]  # type: ignore[list-item]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is pinned for an accelerator")
def test_a_loader_pins_all_of_a_batch() -> None:
    """``DataLoader(pin_memory=True)`` pinned nothing: it asks an object of a class of one's own for pin_memory()."""
    whole = replace(token_batch(), index=torch.arange(5))
    loader: Any = DataLoader([whole], batch_size=None, pin_memory=True)
    found = next(iter(loader))
    assert all(part.is_pinned() for part in _tensors(found))
    moved = found.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(moved.to("cpu").inputs["input_ids"], whole.inputs["input_ids"])


def test_a_loader_that_pins_makes_batches_where_there_is_nothing_to_pin_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it pins nothing without an accelerator
        loader: Any = DataLoader([token_batch()], batch_size=None, pin_memory=True)
        assert isinstance(next(iter(loader)), Batch)
