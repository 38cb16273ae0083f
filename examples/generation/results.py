"""Does the epistemic part of each token mark what is outside the corpus? All methods; a second call continues.

    python -m examples.generation.results --data FOLDER --jobs 1

The first call fetches SmolLM2-135M and the prompts, and computes the hidden states below the adapted layers, once.
``--data`` is MELD's folder; without it there are no texts of the kind ``dialogue``. Records go to
``results/generation.json``, texts that were written to ``results/generation_texts.json``, what was said of each text to
``runs/generation/``; ``--page docs/results/generation.md`` also puts the tables between the markers ``generation``,
``generation_intervals`` and ``generation_texts`` of that file.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bayes_adapters.analysis.intervals import Interval, pigeonhole
from bayes_adapters.analysis.metrics import auroc
from bayes_adapters.analysis.records import write_records
from bayes_adapters.backbones import language_model
from examples.generation.corpus import FOREIGN, INSIDE, Corpus, Text, make_corpus
from examples.generation.experiment import OUTSIDE, Result, Row, Settings, Task, run
from examples.generation.methods import METHODS
from examples.generation.states import States
from examples.generation.writing import load_written, save_written, table, write
from examples.studies.comparison import markdown, mean_table, rewrite_file, short, signed
from examples.studies.decoder import cut
from examples.studies.grid import Grid, claim_folder
from examples.studies.kept_states import kept
from examples.studies.meld.data import Meld
from examples.studies.rows import read_rows, write_rows
from examples.studies.training_free import PACKAGES, docstrings
from examples.studies.verify_prompts.prompts import load_prompts

SETTINGS = Settings()
BASELINE = "lora"
"""The method whose total uncertainty is what an epistemic part has to beat."""
KINDS = ("shuffled", "foreign", "docstring", "dialogue")
COLUMNS: dict[str, tuple[str, str]] = {
    "trained": (INSIDE, "parameters"),
    "NLL of the corpus": (INSIDE, "nll"),
    "epistemic of the corpus": (INSIDE, "epistemic"),
    "epistemic outside": (OUTSIDE, "epistemic"),
    "AUROC (epistemic)": (OUTSIDE, "auroc_ood"),
    "AUROC (total)": (OUTSIDE, "auroc_ood_total"),
    "AUROC (NLL)": (OUTSIDE, "auroc_ood_nll"),
}
"""Heading → condition and metric, of all outside texts together. Nats per token."""
PARTS = {"epistemic": "auroc_ood", "total": "auroc_ood_total", "nll": "auroc_ood_nll"}
_DRAWS = 300
_TEXTS_OF_SEED = 0

Said = Mapping[str, Mapping[int, Mapping[str, Sequence[Row]]]]
"""Method → seed → kind → rows, in the order of the groups."""


def told_apart(score: Tensor, outside: Tensor) -> float:
    """AUROC of one seed's scores; .5 where they are all the same."""
    return 0.5 if float(score.min()) == float(score.max()) else auroc(score, outside)


def compare(
    said: Said, one: tuple[str, str], two: tuple[str, str] | None, kinds: Sequence[str], draws: int = _DRAWS
) -> Interval:
    """Return the AUROC of a method's part, or its difference to another's, with an interval over seeds and texts.

    A text of the corpus and those that are as long as it are drawn together.

    Args:
        said: what was said of each text.
        one: method and part of the uncertainty: ``epistemic``, ``total`` or ``nll``.
        two: what is subtracted; None is chance, .5, which is added again.
        kinds: of the outside texts.
        draws: of the bootstrap.
    """
    seeds = sorted(said[one[0]].keys() & (said[two[0]] if two else said[one[0]]).keys())
    first = said[one[0]][seeds[0]]
    groups = [row.group for kind in (INSIDE, *kinds) for row in first[kind]]
    flags = [kind != INSIDE for kind in (INSIDE, *kinds) for _ in first[kind]]
    outside = torch.tensor(flags).expand(len(seeds), -1)

    def scores(method: str, part: str) -> Tensor:
        rows = [[getattr(row, part) for kind in (INSIDE, *kinds) for row in said[method][s][kind]] for s in seeds]
        return torch.tensor(rows, dtype=torch.float64)

    other = scores(*two) if two else torch.zeros(len(seeds), len(groups), dtype=torch.float64)
    found = pigeonhole(told_apart, (scores(*one), outside), (other, outside), groups=groups, draws=draws, seed=0)
    return found if two else found._replace(**{k: getattr(found, k) + 0.5 for k in ("difference", "low", "high")})


def intervals(rows: Sequence[Row], draws: int = _DRAWS) -> list[str]:
    """Return a table of AUROCs by the epistemic part of each kind and of all, and that minus the baseline's total.

    A method without an epistemic part has a row of its total.
    """
    said: dict[str, dict[int, dict[str, list[Row]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        said[row.method][row.seed][row.kind].append(row)
    measured = {row.kind for row in rows}
    kinds = [kind for kind in KINDS if kind in measured]
    methods = [name for name in METHODS if len(said.get(name, {})) > 1]
    lines = []
    for name in methods:
        part = "epistemic" if METHODS[name].random else "total"
        cells = [compare(said, (name, part), None, own, draws) for own in [[kind] for kind in kinds] + [kinds]]
        texts = [f"{short(c.difference)} [{short(max(0.0, c.low))}, {short(min(1.0, c.high))}]" for c in cells]
        beyond = "–"
        if BASELINE in methods and (name, part) != (BASELINE, "total"):
            beyond = signed(*compare(said, (name, part), (BASELINE, "total"), kinds, draws)[:3])
        lines.append([name, part, *texts, beyond])
    return markdown(["method", "by its", *kinds, "all", f"all, minus {BASELINE}'s total"], lines)


class GenerationGrid(Grid[Result]):
    """Every method × seeds."""

    module = "examples.generation.results"
    description = __doc__
    methods = tuple(METHODS)
    record = Result
    seeds = 3
    runs, out = Path("runs/generation"), Path("results/generation.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the data, and where the tables go."""
        parser.add_argument("--data", type=Path, help="folder of MELD's three *_sent_emo.csv")
        parser.add_argument("--page", type=Path, help="a file with the markers of the tables")
        parser.add_argument("--texts", type=Path, default=Path("results/generation_texts.json"))

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder for these texts, and compute their states once."""
        whole, tokenizer = language_model()
        found = corpus(arguments, tokenizer)
        texts = repr([text.ids for own in (found.train, *found.parts.values()) for text in own])
        claim_folder(arguments.runs, SETTINGS, texts=hashlib.sha256(texts.encode()).hexdigest()[:16])
        task(arguments, whole, found)
        return [] if arguments.data is None else ["--data", str(arguments.data)]

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Do one run, and write what it gave."""
        whole, tokenizer = language_model()
        results, rows, trained = run(task(arguments, whole, corpus(arguments, tokenizer)), method, seed, SETTINGS)
        if seed == _TEXTS_OF_SEED and METHODS[method].random:
            save_written(texts_of(arguments.runs, method), write(method, seed, trained, whole, tokenizer))
        write_rows(arguments.runs / f"{method}-{seed}.csv", Row, rows)
        write_records(arguments.runs / f"{method}-{seed}.json", results)

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write the texts, and the tables into the page."""
        paths = [texts_of(arguments.runs, name) for name in METHODS]
        texts = [text for path in paths if path.is_file() for text in load_written(path)]
        rows = [row for path in predictions for row in read_rows(path, Row)]
        tables = {"generation": mean_table(records, COLUMNS, "method", reference=INSIDE)}
        if len({row.seed for row in rows}) > 1:
            tables["generation_intervals"] = intervals(rows)
        if texts:
            save_written(arguments.texts, texts)
            tables["generation_texts"] = table(texts)
        (arguments.runs / "report.md").write_text("\n\n".join("\n".join(t) for t in tables.values()) + "\n")
        if arguments.page:
            rewrite_file(arguments.page, tables)


def texts_of(runs: Path, method: str) -> Path:
    """Where what ``method`` wrote is kept."""
    return runs / f"{method}-{_TEXTS_OF_SEED}.texts.json"


def corpus(arguments: argparse.Namespace, tokenizer: object) -> Corpus:
    """Return what is learnt and measured."""
    others = {"docstring": [text for package in PACKAGES for text in docstrings(package)]}
    if arguments.data is not None:
        others["dialogue"] = [utterance.text for utterance in Meld.load(arguments.data).splits["test"]]
    prompts = load_prompts(("en", *FOREIGN), max_seconds=60.0)
    return make_corpus(prompts, others, tokenizer, held_out=SETTINGS.held_out, longest=SETTINGS.longest)


def task(arguments: argparse.Namespace, whole: torch.nn.Module, found: Corpus) -> Task:
    """Return the texts of a run as hidden states."""
    below, _ = cut(whole, SETTINGS.layers)
    every = [*found.train, *(text for own in found.parts.values() for text in own)]
    found_states = kept([text.ids for text in every], below, arguments.runs)
    states = {text.key: state for text, state in zip(every, found_states, strict=True)}

    def of(texts: Sequence[Text]) -> States:
        return States(texts, [states[text.key] for text in texts])

    parts = {kind: of(own) for kind, own in found.parts.items()}
    return Task(of(found.train), parts, lambda: cut(whole, SETTINGS.layers)[1])


if __name__ == "__main__":
    raise SystemExit(GenerationGrid().main())
