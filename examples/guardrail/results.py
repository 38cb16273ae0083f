"""Is a posterior's uncertainty a better guard than the entropy of a point adapter? A second call continues.

    python -m examples.guardrail.results --jobs 2

The first call fetches SmolLM2-135M, and computes the hidden states of the sums to learn, once. Records go to
``results/guardrail.json``, answers to ``runs/guardrail/``; ``--page docs/results/guardrail.md`` also puts the tables
between the markers ``guardrail`` and ``guardrail_differences`` of that file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bayes_adapters.analysis.intervals import Interval, pigeonhole
from bayes_adapters.analysis.metrics import aurc
from bayes_adapters.analysis.records import write_records
from bayes_adapters.backbones import language_model
from bayes_adapters.data.texts import completions
from examples.generation.corpus import Text
from examples.generation.states import States
from examples.guardrail.experiment import CALIBRATION, SCORES, Options, Result, Row, Task, run
from examples.guardrail.methods import METHODS
from examples.guardrail.questions import KINDS, LEARNT, Question, ask
from examples.studies.comparison import cell, markdown, mean_of, rewrite_file, short, signed
from examples.studies.decoder import cut
from examples.studies.grid import Grid, claim_folder
from examples.studies.kept_states import kept
from examples.studies.rows import read_rows, write_rows

OPTIONS = Options()
BASELINE = ("lora", "total")
"""Method and score that a posterior has to beat."""
_DRAWS = 300

Said = Mapping[str, Mapping[int, Mapping[str, Sequence[Row]]]]
"""Method → seed → kind → answers, in the order of the questions."""


def asked(options: Options = OPTIONS) -> dict[str, list[Question]]:
    """Return the questions: ``"learn"``, :data:`CALIBRATION`, and every kind; no sum stands in two of them."""
    measured = {kind: ask(kind, options.asked, seed=1) for kind in KINDS}
    calibration = ask(LEARNT, options.calibration, seed=2, without=measured[LEARNT])
    learnt = ask(LEARNT, options.learnt, seed=0, without=[*measured[LEARNT], *calibration])
    return {"learn": learnt, CALIBRATION: calibration, **measured}


def task(folder: Path | None, whole: torch.nn.Module, tokenizer: object, options: Options = OPTIONS) -> Task:
    """Return what a run reads; hidden states are kept in ``folder``."""
    found = asked(options)
    texts = [_text(number, question, tokenizer, options.prompt) for number, question in enumerate(found.pop("learn"))]
    below, _ = cut(whole, options.training.layers)
    states = States(texts, kept([text.ids for text in texts], below, folder))
    return Task(states, found, lambda: cut(whole, options.training.layers)[1], whole, tokenizer)


def _text(number: int, question: Question, tokenizer: object, longest: int) -> Text:
    batch = completions(tokenizer, [question.text], [question.answer], longest=longest)
    labels = batch.targets
    assert isinstance(labels, Tensor)
    ids = tuple(batch.inputs["input_ids"][0].tolist())
    return Text(f"{number:04}", f"{number:04}", LEARNT, ids, int((labels < 0).sum()))


def compare(said: Said, one: tuple[str, str], two: tuple[str, str], kind: str, draws: int = _DRAWS) -> Interval:
    """Return the difference of the areas under risk and coverage, with an interval over seeds and questions.

    Args:
        said: all answers.
        one: method and score.
        two: those that are subtracted.
        kind: of the questions.
        draws: of the bootstrap.
    """
    seeds = sorted(said[one[0]].keys() & said[two[0]].keys())

    def columns(method: str, score: str) -> tuple[Tensor, Tensor]:
        rows = [said[method][seed][kind] for seed in seeds]
        unsure = torch.tensor([[getattr(row, score) for row in own] for own in rows], dtype=torch.float64)
        return unsure, torch.tensor([[row.wrong for row in own] for own in rows], dtype=torch.float64)

    return pigeonhole(aurc, columns(*one), columns(*two), draws=draws, seed=0)


def guard_table(records: Sequence[Result]) -> list[str]:
    """Return what the guard does on every kind of questions, for each method and score, means over seeds."""
    head = ["method", "by its", "passes per token", "questions", "wrong without a guard", "handed over",
            "given and wrong", "AURC", "AUROC of errors"]  # fmt: skip
    lines = []
    for method in METHODS:
        for score in SCORES:
            for kind in KINDS:
                own = [r for r in records if (r.method, r.score, r.condition) == (method, score, kind)]
                if own:
                    numbers = ([1 - r.accuracy for r in own], *([getattr(r, f) for r in own] for f in _FIELDS))
                    lines.append([method, score, short(mean_of([float(r.samples) for r in own]), 0), kind,
                                  *(cell(column) for column in numbers)])  # fmt: skip
    return markdown(head, lines)


_FIELDS = ("handed", "given_wrong", "aurc", "auroc_error")


def difference_table(rows: Sequence[Row], draws: int = _DRAWS) -> list[str]:
    """Return AURC minus that of :data:`BASELINE`, kind by kind; below 0 is better."""
    said: dict[str, dict[int, dict[str, list[Row]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        said[row.method][row.seed][row.kind].append(row)
    lines = []
    for method in METHODS:
        if len(said.get(method, {}).keys() & said.get(BASELINE[0], {}).keys()) < 2:
            continue
        first = next(iter(next(iter(said[method].values())).values()))[0]
        for score in SCORES:
            if (method, score) != BASELINE and getattr(first, score) == getattr(first, score):
                found = [compare(said, (method, score), BASELINE, kind, draws) for kind in KINDS]
                lines.append([method, score, *(signed(*interval[:3]) for interval in found)])
    return markdown(["method", "by its", *KINDS], lines)


class GuardrailGrid(Grid[Result]):
    """Every method × seeds."""

    module = "examples.guardrail.results"
    description = __doc__
    methods = tuple(METHODS)
    record = Result
    seeds = 3
    runs, out = Path("runs/guardrail"), Path("results/guardrail.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add where the tables go."""
        parser.add_argument("--page", type=Path, help="a file with the markers of the tables")

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and compute the states once."""
        claim_folder(arguments.runs, OPTIONS, methods=repr(METHODS))
        task(arguments.runs, *_model())
        return []

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Do one run, and write what it gave."""
        results, rows = run(task(arguments.runs, *_model()), method, seed, OPTIONS)
        write_rows(arguments.runs / f"{method}-{seed}.csv", Row, rows)
        write_records(arguments.runs / f"{method}-{seed}.json", results)

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write the tables."""
        rows = [row for path in predictions for row in read_rows(path, Row)]
        tables = {"guardrail": guard_table(records)}
        if len({row.seed for row in rows}) > 1:
            tables["guardrail_differences"] = difference_table(rows)
        (arguments.runs / "report.md").write_text("\n\n".join("\n".join(t) for t in tables.values()) + "\n")
        if arguments.page:
            rewrite_file(arguments.page, tables)


def _model() -> tuple[torch.nn.Module, object]:
    model, tokenizer = language_model()
    tokenizer.padding_side = "left"  # prompts are written on
    return model, tokenizer


if __name__ == "__main__":
    raise SystemExit(GuardrailGrid().main())
