"""The study's tables: means over seeds, what is known of errors, cost, and differences with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import torch

from bayes_adapters.analysis.intervals import Interval, holm, pigeonhole
from examples.grounding.methods import ABLATIONS, METHODS, TASKS
from examples.grounding.records import Result, Row
from examples.grounding.scores import METRICS, column
from examples.studies.comparison import markdown, mean_table, short, signed

_DRAWS = 300
MEANS: dict[str, tuple[str, str]] = {
    "P@0.5": ("test", "accuracy"),
    "held-out kinds P@0.5": ("kinds", "accuracy"),
    "other drawer P@0.5": ("drawer", "accuracy"),
    "mIoU": ("test", "mask_iou"),
    "held-out kinds mIoU": ("kinds", "mask_iou"),
    "other drawer mIoU": ("drawer", "mask_iou"),
    "oIoU": ("test", "overall_iou"),
}
BOXES: dict[str, tuple[str, str]] = {
    "NLL": ("test", "nll"),
    "other drawer NLL": ("drawer", "nll"),
    "covered": ("test", "coverage"),
    "held-out kinds covered": ("kinds", "coverage"),
    "other drawer covered": ("drawer", "coverage"),
    "side": ("test", "side"),
    "errors told: total": ("test", "auroc_error"),
    "epistemic": ("test", "auroc_error_epistemic"),
    "held-out kinds: epistemic": ("kinds", "auroc_error_epistemic"),
    "other drawer: epistemic": ("drawer", "auroc_error_epistemic"),
    "other drawer told apart": ("drawer", "auroc_ood"),
}
PIXELS: dict[str, tuple[str, str]] = {
    "NLL": ("test", "mask_nll"),
    "other drawer NLL": ("drawer", "mask_nll"),
    "AUSE": ("test", "ause"),
    "other drawer AUSE": ("drawer", "ause"),
    "PAvPU": ("test", "pavpu"),
    "other drawer PAvPU": ("drawer", "pavpu"),
    "errors told: total": ("test", "mask_error"),
    "epistemic": ("test", "mask_error_epistemic"),
    "other drawer: epistemic": ("drawer", "mask_error_epistemic"),
}
COST: dict[str, tuple[str, str]] = {
    "trained": ("test", "parameters"),
    "training, s": ("test", "train_seconds"),
    "a step, s": ("test", "step_seconds"),
    "weight of masks": ("test", "weight"),
}


class Pair(NamedTuple):
    """A difference ``one − two`` of a metric of :data:`~examples.grounding.scores.METRICS` in a split."""

    one: str
    two: str
    metric: str
    condition: str = "test"


def _pairs() -> tuple[Pair, ...]:
    quality = {"rec": ("P@0.5",), "res": ("mIoU",), "both": ("P@0.5", "mIoU")}
    others = ("late-fusion-longer", "concat-lora", "concat-lora-matched", "wander")
    found = [
        Pair(f"cola.{task}", f"{other}.{task}", metric)
        for task, metrics in quality.items()
        for other in others
        for metric in metrics
    ]
    found += [
        Pair("cola.both", f"{other}.both", metric, condition)
        for other in ("concat-lora-matched", "late-fusion-longer")
        for condition in ("kinds", "drawer")
        for metric in ("P@0.5", "mIoU")
    ]
    for both in ("both", "learned"):  # one model for two tasks against one for each
        for method in ("cola", "concat-lora"):
            found += [
                Pair(f"{method}.{both}", f"{method}.rec", "P@0.5"),
                Pair(f"{method}.{both}", f"{method}.res", "mIoU"),
            ]
    found += [Pair(f"{name}.both", "cola.both", metric) for name in ABLATIONS for metric in quality["both"]]
    random = ("P@0.5", "box NLL", "mIoU", "mask NLL", "AUROC of box errors")
    found += [Pair("bayesian-cola.both", "cola.both", metric) for metric in random]
    found += [Pair("bayesian-cola.both", "cola.both", metric, "drawer") for metric in random[1::2]]
    return tuple(found)


PAIRS = _pairs()
"""The differences that are looked at; their p-values are adjusted together."""


def means(records: Sequence[Result]) -> dict[str, list[str]]:
    """Return the tables of means by the name of their markers; those of boxes leave out tasks without, and so on."""
    order = {name: number for number, name in enumerate(METHODS)}
    ordered = sorted(records, key=lambda r: order[r.method])
    boxes = [r for r in ordered if "box" in TASKS[r.method.partition(".")[2]]]
    masks = [r for r in ordered if "mask" in TASKS[r.method.partition(".")[2]]]
    parts = {"means": (ordered, MEANS), "boxes": (boxes, BOXES), "pixels": (masks, PIXELS), "cost": (ordered, COST)}
    return {
        f"grounding_{name}": mean_table(own, columns, "method.task", reference="test")
        for name, (own, columns) in parts.items()
    }


Said = dict[str, dict[str, dict[int, list[Row]]]]
"""Method → condition → seed → rows in the order of the split."""


def said_of(rows: Sequence[Row]) -> Said:
    """Sort rows."""
    found: Said = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        found[row.method][row.condition][row.seed].append(row)
    return found


def difference(said: Said, pair: Pair, draws: int = _DRAWS) -> Interval | None:
    """Return the difference with an interval over seeds and scenes.

    None without two common seeds, or where the metric is not defined: an AUROC of errors where there is none.

    Args:
        said: rows, sorted.
        pair: which difference.
        draws: of the pigeonhole bootstrap; an expression goes with its scene.
    """
    one, two = (said.get(name, {}).get(pair.condition, {}) for name in (pair.one, pair.two))
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) < 2:
        return None
    metric, names = METRICS[pair.metric]
    a, b = (tuple(torch.stack([column(own[seed], name) for seed in seeds]) for name in names) for own in (one, two))
    scores = [float(metric(*(values[s] for values in own))) for own in (a, b) for s in range(len(seeds))]
    if not all(map(math.isfinite, scores)):
        return None
    scenes = [row.scene for row in one[seeds[0]]]
    return pigeonhole(metric, a, b, groups=scenes, draws=draws, seed=0)


def differences(rows: Sequence[Row], draws: int = _DRAWS) -> list[str]:
    """Return the table of :data:`PAIRS` that were measured, with p-values adjusted by Holm."""
    said = said_of(rows)
    found = [(pair, own) for pair in PAIRS if (own := difference(said, pair, draws)) is not None]
    adjusted = holm([own.p_value for _, own in found])
    lines = [
        [
            f"{pair.one} − {pair.two}",
            pair.condition,
            pair.metric,
            signed(own.difference, own.low, own.high),
            short(p, 3),
        ]
        for (pair, own), p in zip(found, adjusted, strict=True)
    ]
    return markdown(["difference", "split", "metric", "95 % interval", "p (Holm)"], lines)


def forms(rows: Sequence[Row]) -> list[str]:
    """Return P@0.5 (mIoU where there is no box) of the test split by what the words go by, means over seeds."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.condition == "test":
            boxes = "box" in TASKS[row.method.partition(".")[2]]
            found[row.method][row.form].append(float(row.box_iou >= 0.5) if boxes else row.mask_iou)
    names = sorted({form for own in found.values() for form in own})
    lines = [
        [method, *(short(fmean(found[method][form])) if found[method][form] else "–" for form in names)]
        for method in METHODS
        if method in found
    ]
    return markdown(["method.task", *names], lines)
