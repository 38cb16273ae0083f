"""Tables of the study: means over seeds, and differences with intervals over training seeds and clips or frames.

All seeds are tested on the same units, so a difference is a table ``d[seed, unit]``, and both are resampled
(:func:`~bayes_adapters.analysis.intervals.pigeonhole`). p-values are adjusted for all differences of a task (Holm).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bayes_adapters.analysis.intervals import Interval, holm, pigeonhole
from bayes_adapters.analysis.metrics import auroc
from bayes_adapters.errors import DataError
from examples.av_events.records import Result, Row
from examples.av_events.task import CONDITIONS, NOISE, SEEN, UNSEEN, Task
from examples.studies.comparison import cell, markdown, short, signed

PAIRS = (
    ("cola", "late-fusion"),
    ("cola", "concat-lora"),
    ("cola", "concat-lora-matched"),
    ("cola", "wander"),
    ("cola", "cola-into-vision"),
    ("cola", "cola-into-audio"),
    ("bayesian-cola", "cola"),
)
"""What is compared; the third is CoLA with plain LoRA of as many numbers."""
SCORES = {Task.EVENTS: "accuracy", Task.MASKS: "mIoU"}
"""What ``score`` of a row is called."""
NOT_YET = ["Not measured yet."]
Said = Mapping[str, Mapping[int, Mapping[str, Tensor]]]
"""Method → seed → condition → shape (N, 5): the numbers of every unit's :class:`Row`, unit by unit."""


def split(name: str) -> tuple[Task, str]:
    """Return task and method of a run's name.

    >>> split("masks-concat-lora")
    (<Task.MASKS: 'masks'>, 'concat-lora')
    """
    task, _, method = name.partition("-")
    return Task(task), method


def by_unit(rows: Sequence[Row]) -> Said:
    """Sort rows.

    Raises:
        DataError: the units of a task and condition are not 0 … N − 1, once each and in this order, in every run.
    """
    found: dict[str, dict[int, dict[str, list[Row]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    many: dict[tuple[Task, str], int] = defaultdict(int)
    for row in rows:
        found[row.method][row.seed][row.condition].append(row)
        key = split(row.method)[0], row.condition
        many[key] = max(many[key], row.unit + 1)
    for method, seeds in found.items():
        for seed, conditions in seeds.items():
            for condition, own in conditions.items():
                wanted = many[split(method)[0], condition]
                if [row.unit for row in own] != list(range(wanted)):
                    raise DataError(
                        f"{method} of seed {seed} has {len(own)} rows of {condition!r}, which are not those of units 0 "
                        f"to {wanted - 1}, of which there are {wanted}. Were its runs made with other settings?"
                    )
    return {
        method: {
            seed: {c: torch.tensor([row[4:] for row in own], dtype=torch.float64) for c, own in conditions.items()}
            for seed, conditions in seeds.items()
        }
        for method, seeds in found.items()
    }


def means(records: Sequence[Result], task: Task) -> list[str]:
    """Return the table of a task: a row per method, mean ± standard deviation over seeds."""
    own = [record for record in records if split(record.method)[0] is task]
    if not own:
        return NOT_YET
    found: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for record in own:
        found[split(record.method)[1], record.condition].append(record)

    def column(condition: str, field: str) -> Callable[[str], str]:
        return lambda method: cell([getattr(r, field) for r in found[method, condition]])

    def scaled(condition: str, field: str) -> Callable[[str], str]:
        plain, after = column(condition, field), column(condition, f"{field}_scaled")
        return lambda method: f"{plain(method)} → {after(method)}"

    score = "iou" if task is Task.MASKS else "accuracy"
    columns: dict[str, Callable[[str], str]] = {
        "seeds": lambda method: str(len(found[method, SEEN])),
        "trained": column(SEEN, "parameters"),
    }
    columns |= {f"{SCORES[task]} {condition}": column(condition, score) for condition in CONDITIONS}
    columns |= {f"NLL {condition} → with T": scaled(condition, "nll") for condition in CONDITIONS}
    columns |= {"ECE seen → with T": scaled(SEEN, "ece"), "AUSE seen": column(SEEN, "ause")}
    methods = list(dict.fromkeys(split(record.method)[1] for record in own))
    rows = [[method, *(text(method) for text in columns.values())] for method in methods]
    return markdown(["method", *columns], rows)


def differences(said: Said, task: Task, draws: int = 1000) -> list[str]:
    """Return the table of :data:`PAIRS`: score and NLL with a temperature under every condition, and p after Holm."""
    found: dict[tuple[str, str], Interval] = {}
    columns = [(place, condition) for place in (0, 2) for condition in CONDITIONS]
    for method, other in PAIRS:
        one, two = (said.get(f"{task}-{name}", {}) for name in (method, other))
        seeds = sorted(set(one) & set(two))
        if len(seeds) < 2:
            continue
        for place, condition in columns:
            a, b = (torch.stack([own[seed][condition][:, place] for seed in seeds]) for own in (one, two))
            found[f"{method} − {other}", f"{place}{condition}"] = pigeonhole(torch.mean, a, b, draws=draws, seed=0)
    adjusted = dict(zip(found, holm([one.p_value for one in found.values()]), strict=True))
    rows = []
    for name in dict.fromkeys(pair for pair, _ in found):
        keys = [(name, f"{place}{condition}") for place, condition in columns]
        rows.append([name, *(f"{signed(*found[key][:3])}, p {short(adjusted[key], 3)}" for key in keys)])
    heads = [f"{SCORES[task] if place == 0 else 'NLL, with T'} {condition}" for place, condition in columns]
    return markdown(["difference", *heads], rows) if rows else NOT_YET


def told_apart(said: Said, task: Task, draws: int = 1000) -> list[str]:
    """Return how well an uncertainty tells whole clips, or frames, from ``seen``: AUROC − ½, over seeds and units.

    The epistemic part is that of methods with draws; others have none.
    """
    rows = []
    for name, seeds in said.items():
        numbers = sorted(seeds)
        if split(name)[0] is not task or len(numbers) < 2:
            continue
        for place, part in ((3, "total"), (4, "epistemic")):
            tests = {c: torch.stack([seeds[s][c][:, place] for s in numbers]) for c in CONDITIONS}
            if not bool(tests[SEEN].any()):
                continue
            cells = []
            for condition in (NOISE, UNSEEN):
                here = tests[condition], tests[SEEN]
                nothing = torch.zeros_like(here[0]), torch.zeros_like(here[1])
                cells.append(signed(*pigeonhole(_auroc, here, nothing, draws=draws, seed=0)[:3]))
            rows.append([split(name)[1], part, *cells])
    return markdown(["method", "uncertainty", NOISE, UNSEEN], rows) if rows else NOT_YET


def _auroc(here: Tensor, reference: Tensor) -> float:
    return auroc(torch.cat([here, reference]), torch.cat([torch.ones(len(here)), torch.zeros(len(reference))]))


def tables(records: Sequence[Result], rows: Sequence[Row], draws: int = 1000) -> dict[str, list[str]]:
    """Return marker → lines for every task of which something is finished; an interval is of ``draws`` resamplings."""
    said = by_unit(rows)
    found: dict[str, list[str]] = {}
    for task in Task:
        if any(split(method)[0] is task for method in said):
            found[f"av_{task}"] = means(records, task)
            found[f"av_{task}_differences"] = differences(said, task, draws)
            found[f"av_{task}_told_apart"] = told_apart(said, task, draws)
    return found
