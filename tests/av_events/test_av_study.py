"""The study of events and masks, on tones, made strokes and tiny encoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bayes_adapters import ELBO, adapted_layers
from bayes_adapters.errors import ConfigError, DataError
from examples.av_events import tables
from examples.av_events.digits import strokes
from examples.av_events.experiment import run, train
from examples.av_events.kept import kept
from examples.av_events.methods import METHODS, Parts, build, cola_size, matched_rank
from examples.av_events.nets import Nets
from examples.av_events.recordings import tones
from examples.av_events.records import Result, Row
from examples.av_events.sounds import Seconds
from examples.av_events.task import (
    CONDITIONS,
    NOISE,
    SEEN,
    UNSEEN,
    Batches,
    Examples,
    Settings,
    Task,
    heard,
    part_of,
    parts,
)
from examples.grounding.vision import VisionSettings
from examples.studies.halves import Above, below
from tests.helpers import bert, vit, whisper
from tests.refusals import refuses

TONES, STROKES = tones(("a", "b", "c", "d"), takes=5, seconds=0.15), strokes(each=10)
TINY = Settings(
    clips=4,
    frames=6,
    tested=4,
    tested_frames=6,
    seconds=0.2,
    blocks=1,
    rank=2,
    gamma=4,
    head=8,
    fusion_rank=2,
    terms=1,
    length=3,
    width=8,
    epochs=3,
    batch_size=20,
    lr=0.05,  # in so few steps; a temperature needs answers that are better than equal probabilities
    samples=2,
    detail=1,
)


class Speech:
    """Hears a mean per hundredth of a second, in eight channels."""

    def __init__(self) -> None:
        self.encoder = whisper(2).requires_grad_(False)

    def fingerprint(self) -> str:
        return "of the only speech encoder here"

    def mel(self, waves: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(waves).reshape(len(waves), 1, -1, 160).mean(-1).repeat(1, 8, 1)


def nets() -> Nets:
    torch.manual_seed(0)
    vit = VisionSettings(64, 16, width=8, layers=2, heads=2).transformer()
    return Nets(vit.eval().requires_grad_(False), Speech())  # type: ignore[arg-type]


def encoders() -> dict[str, nn.Module]:
    return nets().above(TINY.blocks)


@pytest.fixture(scope="module")
def data() -> dict[Task, dict[str, Examples]]:
    return {task: parts(task, TONES, STROKES, nets(), TINY) for task in Task}


def test_both_halves_are_the_whole() -> None:
    whole, mel = Speech().encoder, torch.randn(3, 8, 20)
    for blocks in (1, 2):
        again = Above(whole, blocks)(below(whole, blocks, input_features=mel))
        torch.testing.assert_close(again.last_hidden_state, whole(mel).last_hidden_state)
    assert not any(layer._forward_pre_hooks for layer in whole.layers)
    states = below(whole, 2, input_features=mel)
    mask = torch.ones(states.shape[:2], dtype=torch.long)
    mask[1, 4:] = 0  # what is masked says nothing
    masked = Above(whole, 2)(states, mask).last_hidden_state
    other = states.clone()
    other[1, 4:] = 7.0
    torch.testing.assert_close(Above(whole, 2)(other, mask).last_hidden_state[1, :4], masked[1, :4])
    torch.testing.assert_close(masked[1:2, :4], Above(whole, 2)(states[1:2, :4]).last_hidden_state)
    unmasked = Above(vit(1), 1)
    unmasked.masks = False  # as blocks of other versions of transformers are
    with refuses(ConfigError, "ViTLayer", "attention_mask"):
        unmasked(torch.zeros(1, 5, 16), torch.ones(1, 5, dtype=torch.long))
    with refuses(ConfigError, "blocks", 3, 2):
        below(whole, 3, input_features=mel)
    with refuses(ConfigError, "BertModel", "layer_norm"):
        Above(bert(1), 1)


def test_words_lie_within_the_window() -> None:
    recording, start = torch.tensor([[0, 3], [-1, 7]]), torch.tensor([[0, 13_600], [0, 6800]])
    waves = heard(Seconds(TONES, recording, start), 3200)
    assert waves.shape == (2, 2, 3200)
    for at, first in (((0, 0), 0), ((0, 1), 800), ((1, 1), 400)):  # 800 is all that 2,400 samples leave
        rest = waves[at].clone()
        rest[first : first + 2400] -= TONES.waves[int(recording[at])]
        assert float(rest.std()) < 0.003
    assert float(waves[1, 0].std()) < 0.003
    loud = heard(Seconds(TONES, recording, start), 3200, noise=0.5) - waves
    assert float(loud.std()) == pytest.approx(0.5, rel=0.05)


def test_parts_of_recordings_are_apart() -> None:
    own = [part_of(TONES, ("b", "c"), first, count) for first, count in ((0, 3), (3, 1), (4, 1))]
    assert [len(part) for part in own] == [60, 20, 20]
    assert len({id(wave) for part in own for wave in part.waves}) == 100
    with refuses(ConfigError, ("a", 0), 5):
        part_of(tones(takes=4), ("a",), 4)
    with refuses(ConfigError, 4, ["a", "b", "c", "d"]):
        parts(Task.EVENTS, TONES, STROKES, nets(), replace(TINY, unseen=4))


def test_noise_alone_differs_and_unseen_speakers_are_unseen(data: dict[Task, dict[str, Examples]]) -> None:
    for made in data.values():
        assert set(made["train"].speakers) | set(made["validation"].speakers) | set(made[SEEN].speakers) <= {"c", "d"}
        assert set(made[UNSEEN].speakers) <= {"a", "b"}
        assert torch.equal(made[SEEN].vision, made[NOISE].vision)
        assert torch.equal(made[SEEN].targets, made[NOISE].targets)
        assert not torch.equal(made[SEEN].audio, made[NOISE].audio)
    events = data[Task.EVENTS][SEEN]
    assert events.audio.shape == (4, 10, 10, 16)
    assert events.vision.shape == (4, 10, 17, 8)
    assert events.targets.shape == (4, 10)
    orders = [[b.ids.tolist() for b in Batches(events, 20, seed)] for seed in (None, 0)]
    assert orders[0] == [[0, 1], [2, 3]]
    assert sorted(row for own in orders[1] for row in own) == [0, 1, 2, 3]


@pytest.mark.parametrize("task", Task)
def test_sizes_are_those_of_the_formulas(task: Task) -> None:
    """CoLA's formula holds with segments and with tokens, and the matched LoRA is the nearest."""
    made = Parts(task, nn.ModuleDict(encoders()), 4, TINY)

    def adapters(method: str) -> int:
        model, guide = build(method, task, encoders(), 4, TINY)
        return sum(p.numel() for p in [*model.backbone.parameters(), *guide.parameters()] if p.requires_grad)

    sizes = {method: adapters(method) for method in METHODS}
    assert sizes["cola"] == cola_size(made)
    per_rank = sizes["concat-lora"] // TINY.rank
    assert abs(sizes["concat-lora-matched"] - sizes["cola"]) <= per_rank / 2
    assert matched_rank(made) * per_rank == sizes["concat-lora-matched"]
    assert sizes["late-fusion"] == 0
    one_each = sizes["cola-into-vision"] + sizes["cola-into-audio"]
    assert one_each - sizes["concat-lora"] == sizes["cola"]  # every path between them is trained in one of the two


def test_examples_are_made_once_and_kept(
    data: dict[Task, dict[str, Examples]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept(Task.MASKS, TONES, STROKES, nets(), TINY, tmp_path)
    monkeypatch.setattr("examples.av_events.kept.parts", lambda *_: pytest.fail("made again"))
    again = kept(Task.MASKS, TONES, STROKES, nets(), TINY, tmp_path)
    for name, own in data[Task.MASKS].items():
        for found in (first[name], again[name]):
            assert (found.task, found.speakers) == (own.task, own.speakers)
            assert all(torch.equal(getattr(found, x), getattr(own, x)) for x in ("vision", "audio", "targets"))
    monkeypatch.undo()
    kept(Task.MASKS, TONES, STROKES, nets(), replace(TINY, noise=0.2), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "other settings, other examples"


def test_one_way_stays_one_way(data: dict[Task, dict[str, Examples]]) -> None:
    model, _ = train("cola-into-vision", encoders(), data[Task.EVENTS], 0, TINY)
    layers = adapted_layers(model.backbone)
    gains = {path: [float(inter.gain.detach()) for inter in layer.inter.values()] for path, layer in layers.items()}  # type: ignore[arg-type]
    assert {path.split(".")[0] for path, own in gains.items() if own == [0.0]} == {"audio"}
    assert len(gains) == 12
    assert all(len(own) == 1 for own in gains.values())


@pytest.mark.parametrize(
    ("task", "method"),
    [
        (Task.EVENTS, "bayesian-cola"),
        (Task.MASKS, "bayesian-cola"),
        (Task.EVENTS, "wander"),
        (Task.MASKS, "late-fusion"),
    ],
)
def test_records_are_the_means_of_rows(data: dict[Task, dict[str, Examples]], task: Task, method: str) -> None:
    made = data[task]
    records, rows = run(f"{task}-{method}", method, encoders(), made, 0, TINY)
    assert [record.condition for record in records] == list(CONDITIONS)
    for record in records:
        own = [row for row in rows if row.condition == record.condition]
        assert [row.unit for row in own] == list(range(len(made[record.condition])))

        def mean(field: str, own: Sequence[Row] = own) -> float:
            return sum(getattr(row, field) for row in own) / len(own)

        score = record.accuracy if task is Task.EVENTS else record.iou
        assert mean("score") == pytest.approx(score)
        assert mean("nll") == pytest.approx(record.nll, rel=1e-6)
        assert mean("nll_scaled") == pytest.approx(record.nll_scaled, rel=1e-6)
        assert mean("total") == pytest.approx(record.total, rel=1e-6)
        assert (mean("epistemic") > 0) == METHODS[method].random
        assert math.isnan(record.auroc_ood) == (record.condition == SEEN)
        assert record.parameters > 0
    assert records[0].nll != records[1].nll


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_do_both_tasks(data: dict[Task, dict[str, Examples]], method: str) -> None:
    for task, made in data.items():
        model, guide = build(method, task, encoders(), 4, TINY)
        loss = ELBO(model, guide, kl_weight=METHODS[method].training(TINY)["kl_weight"])(
            made["train"].batch(torch.arange(2))
        )
        loss.backward()
        head: Any = model.head
        assert bool(next(head.parameters()).grad.any())


def test_unknown_methods_are_refused() -> None:
    with refuses(ConfigError, "colla", "cola"):
        build("colla", Task.EVENTS, encoders(), 4, TINY)


def rows(method: str, ahead: float, seeds: int = 3) -> list[Row]:
    """Scores of .5 and ``ahead``, of which NLLs are 1 less; noise has more, unseen voices the same epistemic part."""
    found = []
    for seed in range(seeds):
        for condition in CONDITIONS:
            for unit in range(8):
                score = 0.5 + ahead + 0.01 * (unit % 3) * ahead + 0.01 * seed * ahead
                epistemic = (0.1 + 0.01 * unit + (condition == NOISE)) * (method == "events-bayesian-cola")
                found.append(Row(method, seed, condition, unit, score, 1 - score, 1 - score, 1.0, epistemic))
    return found


def test_tables_say_who_is_ahead() -> None:
    said = rows("events-cola", 0.2) + rows("events-concat-lora", 0.0) + rows("events-bayesian-cola", 0.2)
    found = tables.tables([], said, draws=100)
    assert found["av_events"] == tables.NOT_YET, "rows, but no records"
    assert not any("masks" in name for name in found), "nothing of it has finished: what the page has stays"
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in found["av_events_differences"][2:]}
    assert set(lines) == {"cola − concat-lora", "bayesian-cola − cola"}
    ahead = lines["cola − concat-lora"]
    assert len(ahead) == 6
    assert ahead[0].startswith("+.204 [")
    assert ahead[3].startswith("−.204 [")
    assert lines["bayesian-cola − cola"][0].startswith("+.000 [+.000, +.000], p 1.000")
    apart = found["av_events_told_apart"]
    assert [line.split(" | ")[:2] for line in apart[-1:]] == [["| bayesian-cola", "epistemic"]]
    assert apart[-1].split(" | ")[2].startswith("+.500")
    assert apart[-1].split(" | ")[3].startswith("+.000")
    assert tables.tables([], rows("events-cola", 0.1, seeds=1), draws=100)["av_events_differences"] == tables.NOT_YET
    with refuses(DataError, "events-bayesian-cola", UNSEEN, 8):
        tables.by_unit(said[:-1])
    with refuses(DataError, "events-cola", SEEN, 8):
        tables.by_unit(said + rows("events-cola", 0.2)[:1])


def test_means_have_a_row_per_method() -> None:
    numbers: dict[str, Any] = dict.fromkeys(
        ("accuracy", "auc", "nll", "brier", "ece", "auroc_error", "auroc_ood", "aurc", "seconds", "iou"), 0.25
    )
    records = [
        Result(f"masks-{m}", seed, "test", c, n=4, samples=1, nll_scaled=0.2, parameters=7, **numbers)
        for m in ("cola", "wander")
        for seed in range(2)
        for c in CONDITIONS
    ]
    lines = tables.means(records, Task.MASKS)
    assert "mIoU unseen" in lines[0]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| cola", "| wander"]
    assert ".250 ± .000 → .200 ± .000" in lines[2]
    assert tables.means(records, Task.EVENTS) == tables.NOT_YET
