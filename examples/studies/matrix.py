"""Which guides, models, backbones, priors and tasks work together: every pair is tried, and the answers are a file.

    python -m examples.studies.matrix

writes ``results/matrix.md``. A pair works if model and guide can be built, three steps of training bring the loss of a
batch down, and the saved adapter, loaded again, predicts the same; otherwise it must be refused when it is built, for
one of :data:`REASONS`. Anything else is an error. What is tried stands in :mod:`examples.studies.matrix_cells`.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, load, predict, save
from bayes_adapters.errors import ConfigError
from examples.studies.matrix_cells import ABOUT, TABLES, Cell, cells, trial
from examples.studies.tiny import batch, make

FILE = Path(__file__).resolve().parents[2] / "results" / "matrix.md"
WORKS = "✓"

REASONS: dict[str, tuple[str, str]] = {
    "a": (
        r"which is (global|sequence|token); it serves",
        "the guide does not serve that granularity: a posterior that depends on the input needs a draw per example "
        "or token, one over weights a draw per data set",
    ),
    "b": (r"which is a \w+; it serves", "the guide does not serve that part of the adapter"),
    "c": ("has nothing to infer", "nothing in the model is random; Delta is then maximum likelihood"),
    "d": ("is improper and has no draws", "a point estimate or a mean starts at a draw of the prior, which has none"),
    "e": (
        "does not allow all real numbers",
        "the posterior has density where the prior has none, an infinite KL",
    ),
    "f": ("does not fit the site's shape", "N(I, .2²) is for square cores"),
    "h": ("has no list of blocks that each hold", "lock-step needs blocks with a query, key and value layer each"),
    "i": (
        "integrates its weights out, and there is no closed form",
        "its head knows a closed form for other targets",
    ),
    "j": (
        "two embeddings that must not see each other",
        "the likelihood compares the embeddings of two sides, and the system does not keep two encoders apart",
    ),
    "k": ("every row has another", "the likelihood compares rows, and flipout gives each another function"),
}
"""Letter → (pattern of the error, what it means)."""


def attempt(cell: Cell) -> str:
    """Try a cell; return :data:`WORKS`, or the letter of the reason for which it was refused.

    Raises:
        ConfigError: it was refused for a reason that :data:`REASONS` does not list.
        RuntimeError: training, prediction, or saving and loading went wrong.
    """
    given = trial(cell)
    torch.manual_seed(0)
    try:
        model, guide = given.build(make(given.backbone))
    except ConfigError as error:
        for letter, (pattern, _) in REASONS.items():
            if re.search(pattern, str(error)):
                return letter
        raise
    data = batch(given.backbone, given.targets)
    before, after = _train(model, guide, data)
    if not after < before:
        raise RuntimeError(f"{cell}: three steps of training took the loss from {before:.4f} to {after:.4f}.")
    answer = predict(model, guide, data, num_samples=2)
    with tempfile.TemporaryDirectory() as folder:
        save(folder, model, guide)
        again = predict(*load(folder, make(given.backbone)), data, num_samples=2)
    if not bool(answer.mean.isfinite().all()) or not torch.equal(answer.mean, again.mean):
        raise RuntimeError(f"{cell}: the saved adapter, loaded again, does not predict the same.")
    return WORKS


def _train(model: AdapterModel, guide: AdapterGuide, data: Any) -> tuple[float, float]:
    """Take three steps; return the loss before and after them, with the same noise."""
    elbo = ELBO(model, guide, kl_weight=1e-4)
    optimizer = torch.optim.AdamW([p for p in elbo.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(4):
        torch.manual_seed(1)
        loss = elbo(data)
        losses.append(float(loss.detach()))
        if step < 3:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses[0], losses[-1]


def render(outcomes: Mapping[Cell, str]) -> str:
    """Return the file's text; a row or column that nothing was tried of is left out."""
    lines = [
        "# What works with what",
        "",
        "Written by `python -m examples.studies.matrix`, on tiny random backbones; every cell is also a test.",
        f"{WORKS}: model and guide are built, three steps of training bring the loss of a batch down, and the saved",
        "adapter, loaded again, predicts the same. A letter: the pair is refused when it is built, with an error that",
        "says why:",
        "",
        *(f"* {letter}: {meaning}" for letter, (_, meaning) in REASONS.items() if letter in outcomes.values()),
    ]
    for table, (every_row, every_column) in TABLES.items():
        rows = [row for row in every_row if any((table, row, c) in outcomes for c in every_column)]
        columns = [c for c in every_column if any((table, row, c) in outcomes for row in rows)]
        lines += ["", f"## {table}", "", ABOUT[table], "", "| | " + " | ".join(columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        lines += [f"| {row} | {' | '.join(outcomes[Cell(table, row, c)] for c in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[Cell, str]:
    """Return the outcomes that a file written by :func:`render` holds."""
    found: dict[Cell, str] = {}
    table, columns = "", []
    for line in text.splitlines():
        if line.startswith("## "):
            table = line[3:]
        elif line.startswith("| | "):
            columns = _fields(line)[1:]
        elif line.startswith("| "):
            row, *values = _fields(line)
            found |= {Cell(table, row, c): value for c, value in zip(columns, values, strict=True)}
    return found


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("|")[1:-1]]


def main() -> None:
    """Parse the command line, try every cell and write the file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    outcomes = {cell: attempt(cell) for cell in cells()}
    FILE.write_text(render(outcomes))
    works = sum(outcome == WORKS for outcome in outcomes.values())
    print(f"{works} of {len(outcomes)} work, {len(outcomes) - works} are refused: {FILE}")


if __name__ == "__main__":
    main()
