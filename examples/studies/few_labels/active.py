"""Active learning: which utterances to label next, by a method's own uncertainty or at random.

    python -m examples.studies.few_labels.active --data FOLDER --jobs 2

A run starts with 50 labelled utterances of a pool of 800 and labels 50 more, three times. After each time the method is
trained anew, to the end, and measured. What is labelled next are the utterances of the pool with the most

* ``bald``: epistemic uncertainty, the mutual information of label and draw (Houlsby et al. 2011, arXiv 1112.5745),
* ``total``: entropy of the averaged prediction,
* ``random``: nothing; the 50 utterances that a seed draws.

The highest ones are taken together: similar utterances may be among them. All strategies of a seed start with the same
utterances, so that differences between them are paired. Records go to ``results/few_labels_active.json``, condition
``labels@N``; predictions, logs and the report to ``runs/few_labels_active/``; ``--page docs/results/few-labels.md``
also puts the tables between the markers ``active`` and ``active_differences`` of that file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayes_adapters.analysis.intervals import holm
from bayes_adapters.analysis.metrics import decompose
from bayes_adapters.analysis.records import Record
from bayes_adapters.backbones import text_backbone
from examples.studies.comparison import markdown, mean_table, short, signed
from examples.studies.few_labels.experiment import SETTINGS, Result, train
from examples.studies.few_labels.results import MeldGrid, Said, nll_difference, publish
from examples.studies.few_labels.task import FewLabels, States
from examples.studies.meld.data import Meld
from examples.studies.meld.experiment import draws, record_of, rows_of
from examples.studies.meld.records import Row
from examples.studies.meld.results import backbone
from examples.studies.meld.task import Settings
from examples.studies.rows import read_rows

POOL = replace(SETTINGS, train_size=800, test_size=500)
"""The pool is what would be trained on; 500 test utterances, in whole dialogues."""
ROUNDS = (50, 100, 150, 200)
"""How many utterances have labels."""
NAMES = ("ensemble", "bayeslora-2026", "c-lora")


class Strategy(StrEnum):
    """What is labelled next."""

    RANDOM = "random"
    TOTAL = "total"
    BALD = "bald"


def acquire(strategy: Strategy, samples: Tensor, labelled: Sequence[int], count: int, seed: int) -> list[int]:
    """Return the ``count`` utterances of the pool to label next.

    Args:
        strategy: see :class:`Strategy`.
        samples: class probabilities of every draw, shape (S, pool, C).
        labelled: those that have labels.
        count: how many more.
        seed: of ``random``.

    >>> sure, torn = torch.tensor([[.9, .1], [.9, .1]]), torch.tensor([[.9, .1], [.1, .9]])
    >>> even = torch.tensor([[.5, .5], [.5, .5]])
    >>> samples = torch.stack([sure, torn, even], 1)  # two draws of three utterances
    >>> acquire(Strategy.BALD, samples, [], 1, 0), sorted(acquire(Strategy.TOTAL, samples, [], 2, 0))
    ([1], [1, 2])
    >>> acquire(Strategy.BALD, samples, [1], 1, 0) == [1]
    False
    """
    if strategy is Strategy.RANDOM:
        scores = torch.rand(samples.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    else:
        parts = decompose(samples.double())
        scores = parts.total if strategy is Strategy.TOTAL else parts.epistemic
    scores = scores.clone()
    scores[list(labelled)] = -torch.inf
    return scores.topk(count).indices.tolist()


def run(
    pool: FewLabels, name: str, strategy: Strategy, seed: int, settings: Settings = POOL, rounds: Sequence[int] = ROUNDS
) -> tuple[list[Result], list[Row]]:
    """Label, train and measure, a round after another: a record per round, and what was said of each test utterance."""
    label = f"{name}-{strategy}"
    assert isinstance(pool.train, States)
    nothing = torch.zeros(1, len(pool.train), 3)
    labelled = acquire(Strategy.RANDOM, nothing, [], rounds[0], seed)
    results: list[Result] = []
    rows: list[Row] = []
    for number, count in enumerate(rounds):
        trained = train(replace(pool, train=pool.train.subset(labelled)), name, seed, settings)
        said = draws(trained, pool, "test", settings).double()
        parts = decompose(said)
        condition = f"labels@{count}"
        targets = pool.test.targets()
        record = record_of(label, seed, condition, said.mean(0), len(said), targets, parts, None, trained.seconds)
        results.append(Result(**vars(record) | {"parameters": trained.parameters, "train_seconds": trained.seconds}))
        rows += rows_of(label, seed, condition, pool.test.utterances, said, parts)
        if number + 1 < len(rounds):
            answers = nothing if strategy is Strategy.RANDOM else draws(trained, pool, "train", settings)
            more = acquire(strategy, answers, labelled, rounds[number + 1] - count, 1000 * (number + 1) + seed)
            labelled = [*labelled, *more]
    return results, rows


def means(records: Sequence[Record]) -> list[str]:
    """Return a table of mean ± standard deviation over seeds: NLL and accuracy after each time."""
    columns = {f"NLL {count} labels": (f"labels@{count}", "nll") for count in ROUNDS}
    columns |= {f"accuracy {count}": (f"labels@{count}", "accuracy") for count in ROUNDS}
    return mean_table(records, columns, "method", reference=f"labels@{ROUNDS[0]}")


def differences(rows: Sequence[Row]) -> list[str]:
    """Return a table of each strategy minus ``random`` of the same method: mean NLL of the rounds after the first.

    Intervals are over training seeds and dialogues together. P-values are adjusted for all rows (Holm).
    """
    said: Said = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.condition != f"labels@{ROUNDS[0]}":
            said[row.method][row.seed][f"{row.condition} {row.key}"] = row
    pairs = [(f"{n}-{s}", f"{n}-{Strategy.RANDOM}") for n in NAMES for s in (Strategy.BALD, Strategy.TOTAL)]
    pairs = [(one, two) for one, two in pairs if one in said and two in said]
    found = [nll_difference(said[one], said[two]) for one, two in pairs]
    adjusted = holm([one.p_value for one in found])
    lines = [
        [f"{one} − {two}", signed(*f[:3]), short(p, 3)] for (one, two), f, p in zip(pairs, found, adjusted, strict=True)
    ]
    return markdown(["difference", "NLL", "p (Holm)"], lines)


class ActiveGrid(MeldGrid):
    """Methods with each strategy × seeds."""

    module = "examples.studies.few_labels.active"
    description = __doc__
    methods = tuple(f"{name}-{strategy}" for name in NAMES for strategy in Strategy)
    runs, out = Path("runs/few_labels_active"), Path("results/few_labels_active.json")
    settings, tuned = POOL, NAMES
    facts: ClassVar[dict[str, Any]] = {"rounds": list(ROUNDS)}

    def measured(self, data: Meld, method: str, seed: int, runs: Path) -> tuple[Sequence[Result], list[Row]]:
        """Do one run."""
        name, _, strategy = method.rpartition("-")
        pool = FewLabels.of(data, data.splits["dev"][:1], text_backbone()[1], backbone, POOL, seed)
        return run(pool, name, Strategy(strategy), seed)

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write ``report.md`` into the folder of the runs, and the tables into the page."""
        tables = {"active": means(records)}
        rows = [row for path in predictions for row in read_rows(path, Row)]
        if len({row.seed for row in rows}) > 1:
            tables["active_differences"] = differences(rows)
        publish("Active learning", tables, arguments)


if __name__ == "__main__":
    raise SystemExit(ActiveGrid().main())
