"""Pruned adapters in files, the log of what was taken out, and its picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, load, predict, save
from bayes_adapters.analysis.plots import ranks_by_layer
from bayes_adapters.errors import AdapterFileError, ConfigError, DataError
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.pruning import PruneRecord, prune, read_log, write_log
from tests.helpers import WIDTH, bert, token_batch
from tests.rank_wise.parts import LAYERS
from tests.refusals import refuses
from tests.surgery.pruning.parts import pair


def test_a_pruned_adapter_is_saved_smaller_and_loads_with_its_shapes(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path / "whole", model, guide)
    prune(model, guide, threshold=2.0)
    save(tmp_path / "pruned", model, guide)
    sizes = [(tmp_path / name / "adapter.safetensors").stat().st_size for name in ("whole", "pruned")]
    removed = 4 * (2 * WIDTH + 1) * 4  # 4 ranks: a row, a column and a variance each, of 4 bytes
    assert sizes[0] - sizes[1] == pytest.approx(removed, abs=64), "but for the header's digits and alignment"
    again, guide_again = load(tmp_path / "pruned", bert())
    assert again.config() == model.config()
    assert again.ranks == model.ranks == dict(zip(LAYERS, [2, 3, 0, 3], strict=True))
    assert again.prior.to_json() == model.prior.to_json()
    batch = token_batch()
    for options in ({"mean_only": True}, {"num_samples": 4}):
        first, second = predict(model, guide, batch, **options), predict(again, guide_again, batch, **options)
        assert torch.equal(first.mean, second.mean)
    assert ELBO(again, guide_again).terms(batch).kl.item() == pytest.approx(ELBO(model, guide).terms(batch).kl.item())
    assert prune(again, guide_again, threshold=2.0).removed == 0
    empty = prune(model, guide, threshold=-100.0, allow_empty=True)
    assert set(empty.after.values()) == {0}
    save(tmp_path / "empty", model, guide)
    assert set(load(tmp_path / "empty", bert())[0].ranks.values()) == {0}


@pytest.mark.parametrize(
    ("ranks", "facts"),
    [({"query": 1}, ("ranks", "'query'")), ({LAYERS[0]: 4}, ("ranks", "rank=3", 0, 4)),
     ({LAYERS[0]: -1}, ("ranks", "rank=3", 0, -1))],
)  # fmt: skip
def test_wrong_ranks_are_refused(ranks: dict[str, int], facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        LoRA(bert(), Bernoulli(), rank=3, ranks=ranks)


def test_the_log_is_json_and_comes_back(tmp_path: Path) -> None:
    model, guide = pair()
    records = [prune(model, guide, threshold=2.0, step=7), prune(model, guide, threshold=2.0)]
    write_log(tmp_path / "log.json", records)
    assert read_log(tmp_path / "log.json") == records
    assert records[1].removed == 0
    assert isinstance(records[0], PruneRecord)
    for text in ("[{}]", "{", '[{"step": 1, "other": 2}]'):
        (tmp_path / "bad.json").write_text(text)
        with refuses(AdapterFileError, str(tmp_path / "bad.json")):
            read_log(tmp_path / "bad.json")


def test_picture_of_ranks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, guide = pair()
    record = prune(model, guide, threshold=2.0)
    figure = ranks_by_layer(record.after, model.rank)
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "8 of 12 ranks left in 4 layers"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["attention.self.query", "attention.self.value"]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "2"), ((0, 1), "3"), ((1, 0), "0"), ((1, 1), "3")}  # fmt: skip
    figure.savefig(tmp_path / "ranks.png", dpi=50)
    assert (tmp_path / "ranks.png").stat().st_size > 1000
    with refuses(DataError, "ranks_by_layer", "one", "none"):
        ranks_by_layer({}, 3)
