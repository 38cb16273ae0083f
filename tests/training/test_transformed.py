"""Transforms between the data and ``fit``: the same every time, new every epoch, exact on resume."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from bayes_adapters import Batch, Frames
from bayes_adapters.data.transforms import FrameNoise, ModalityDropout
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import CrossAttention, MeanField
from bayes_adapters.systems import build
from bayes_adapters.training import batches, fit, transformed
from tests.helpers import CONTEXT, bert, core_model, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses

DATA = token_batch(12)


def stream(seed: int = 0, p: float = 0.5) -> Any:
    return transformed(batches(DATA, 5), FrameNoise("audio", (0.0, 10.0)), ModalityDropout("audio", p), seed=seed)


def seen(data: Any, epoch: int) -> list[torch.Tensor]:
    from bayes_adapters.training._data import set_epoch

    set_epoch(data, epoch)
    return [part for b in data for part in (b.ids, b.context["audio"].values, b.context["audio"].mask)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    assert same(seen(stream(), 1), seen(stream(), 1))
    assert not same(seen(stream(), 0), seen(stream(), 1))
    assert not same(seen(stream(), 1), seen(stream(seed=1), 1))
    fixed = transformed(batches(DATA, 5, shuffle=False), ModalityDropout("audio", 0.5))
    assert same(seen(fixed, 1), seen(fixed, 1))
    assert not same(seen(fixed, 0), seen(fixed, 1)), "the same batches are dropped from anew"
    order = seen(stream(), 1)[::3]
    plain = batches(DATA, 5)
    plain.set_epoch(1)
    assert same(order, [batch.ids for batch in plain]), "the source's own epoch is set too"


def test_some_batches_may_lack_the_modality_and_not_all() -> None:
    video = Batch(DATA.inputs, DATA.targets, {"video": DATA.context["audio"]})
    mixed = list(transformed([DATA, video], ModalityDropout("audio", 1.0)))
    assert not mixed[0].context["audio"].present.any()
    assert torch.equal(mixed[1].context["video"].mask, video.context["video"].mask)
    with refuses(ConfigError, "'audio'", "['video']"):
        list(transformed([video, video], ModalityDropout("audio", 1.0)))


def test_two_layers_of_transforms_are_both_told_the_epoch_and_both_described() -> None:
    from bayes_adapters.training._data import describe

    twice = transformed(stream(), ModalityDropout("audio", 0.1), seed=7)
    assert not same(seen(twice, 0), seen(twice, 1))
    found = describe(twice)
    assert found["batch_size"] == 5
    assert [part["seed"] for part in found["transforms"]] == [0, 7]


def own(batch: Batch, generator: torch.Generator) -> Batch:
    return batch


def test_what_is_described_of_a_function_holds_in_the_next_process() -> None:
    from bayes_adapters.training._data import describe

    assert describe(transformed(batches(DATA, 5), own))["transforms"] == [{"seed": 0, "of": ["<function own>"]}]


def test_two_layers_of_one_seed_draw_apart() -> None:
    """Else both would drop the very same examples: p = ½ twice would leave a half of them, not a quarter."""
    many = token_batch(40)
    frames = Frames(torch.ones(40, 1, 2), torch.ones(40, 1, dtype=torch.bool))
    data = [Batch(many.inputs, many.targets, {"audio": frames, "image": frames})]
    twice = transformed(transformed(data, ModalityDropout("audio", 0.5)), ModalityDropout("image", 0.5))
    heard, pictured = (next(iter(twice)).context[name].present for name in ("audio", "image"))
    assert 8 <= int((heard != pictured).sum()) <= 32


def weights(model: Any, guide: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in {**model.trainable_parameters(), **guide.state_dict()}.items()}


def stop_after(last: int) -> Any:
    def on_step(step: int, *_: Any) -> None:
        if step == last:
            raise KeyboardInterrupt

    return on_step


def trained(folder: Path | None, steps: int, p: float = 0.5, last: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model = core_model(backbone=bert(layers=1))
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
    with nullcontext() if not last else pytest.raises(KeyboardInterrupt):
        on_step = stop_after(last)
        fit(model, guide, stream(p=p), max_steps=steps, checkpoint=folder, progress=False, on_step=on_step)
    return weights(model, guide)


def test_a_run_that_is_continued_ends_bitwise_like_one_that_was_not(tmp_path: Path) -> None:
    whole = trained(None, 5)
    trained(tmp_path, 5, last=2)  # in the middle of the first epoch
    continued = trained(tmp_path, 5)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    assert any(not torch.equal(whole[name], value) for name, value in trained(None, 5, p=0.0).items())
    with refuses(ConfigError, "transforms"):
        trained(tmp_path, 6, p=0.25)


def test_the_size_of_the_data_is_known_through_transforms() -> None:
    model = core_model("global", backbone=bert(layers=1))  # num_data=50
    with refuses(ConfigError, "num_data=50", 12):
        fit(model, MeanField(model), stream(), max_steps=1, progress=False)
    model, guide = build("blob", bert(layers=1), core_model().likelihood, num_data=12, rank=2)
    fit(model, guide, stream(), max_steps=1, progress=False)  # its recipe asks for N and B


def test_a_loader_is_a_source() -> None:
    loader: DataLoader[Any] = DataLoader(
        range(12), batch_size=4, collate_fn=lambda rows: DATA[torch.tensor(rows)], shuffle=True
    )
    data = transformed(loader, ModalityDropout("audio", 0.5))
    assert len(data) == 3
    assert sum(batch.size for batch in data) == 12
    model = core_model(backbone=bert(layers=1))
    assert fit(model, CrossAttention(model, context_dim=CONTEXT, dim=4), data, epochs=1, progress=False).steps == 3


def test_refusals() -> None:
    with refuses(ConfigError, "transform"):
        transformed(DATA)
    for wrong in (ModalityDropout, "dropout"):
        with unchecked(), refuses(ConfigError, "ModalityDropout" if isinstance(wrong, type) else "str"):
            transformed(DATA, wrong)  # type: ignore[arg-type]
    with refuses(DataError, "list_iterator"):
        transformed(iter([DATA]), ModalityDropout())


@pytest.mark.parametrize("target", [DATA, [DATA, DATA]])
def test_batches_that_are_there_already(target: Batch | list[Batch]) -> None:
    found = list(transformed(target, ModalityDropout("audio", 1.0)))
    assert not any(bool(batch.context["audio"].present.any()) for batch in found)
