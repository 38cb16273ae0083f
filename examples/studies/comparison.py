"""What a grid of runs says: paired bootstrap intervals between methods, and tables in Markdown."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.analysis.bootstrap import PairedDifference, paired_bootstrap
from bayes_adapters.analysis.intervals import Interval, seeds_and_units
from bayes_adapters.analysis.records import Record
from bayes_adapters.errors import ConfigError, DataError

Outputs = Mapping[int, Mapping[Hashable, Sequence[float]]]
"""What one method said: seed → example → numbers (probabilities, label, uncertainty, …)."""
Metric = Callable[[Tensor], Tensor | float]
"""Numbers of one seed (N, K), float64 → scores of the examples (N,), whose mean it is, or one number."""


def paired_differences(
    outputs: Mapping[str, Outputs],
    reference: str,
    metrics: Mapping[str, Metric],
    *,
    group: Callable[[Any], Hashable],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, PairedDifference]]:
    """Return each method minus ``reference``, with 95 % intervals from resampling groups of examples in pairs.

    A method is compared on the seeds and examples that it shares with the reference; a metric is the mean over these
    seeds, and a draw takes the same groups for both methods and all seeds. The interval reflects the choice of
    examples, not of training seeds.

    Args:
        outputs: method → what it said.
        reference: the method that is subtracted.
        metrics: name → metric.
        group: example → the group it belongs to (its dialogue, its script).
        draws: number of resamples.
        seed: of the resampling.

    Returns:
        method → name of the metric → difference; methods without a common seed are left out.

    Raises:
        ConfigError: there are no outputs of ``reference``.
        DataError: a seed of one method has other examples than its other seeds.
    """
    if reference not in outputs:
        raise ConfigError(f"Nothing was measured for the reference {reference!r}; measured: {', '.join(outputs)}.")
    found: dict[str, dict[str, PairedDifference]] = {}
    for method, said in outputs.items():
        seeds = sorted(set(said) & set(outputs[reference]))
        if method == reference or not seeds:
            continue
        keys = _common([*(said[s] for s in seeds), *(outputs[reference][s] for s in seeds)])
        both = [
            torch.tensor([[o[s][k] for s in seeds] for k in keys], dtype=torch.float64)
            for o in (said, outputs[reference])
        ]
        groups = [group(key) for key in keys]
        found[method] = {
            name: _difference(metric, both[0], both[1], groups, draws, seed) for name, metric in metrics.items()
        }
    return found


def _common(runs: Sequence[Mapping[Hashable, Any]]) -> list[Hashable]:
    for run in runs[1:]:
        if run.keys() != runs[0].keys():
            odd = run.keys() ^ runs[0].keys()
            raise DataError(
                f"Two runs to be compared measured different examples: {len(odd)} are in one of them only, such as "
                f"{next(iter(odd))!r}. Were they made from different data?"
            )
    return list(runs[0])


def _difference(metric: Metric, a: Tensor, b: Tensor, groups: Sequence[Hashable], draws: int, seed: int) -> Any:
    """``a`` and ``b`` have shape (N, seeds, K)."""
    first = metric(a[:, 0])
    if isinstance(first, Tensor) and first.dim() == 1:  # a mean: score every example once, then resample the scores
        one, two = (torch.stack([torch.as_tensor(metric(v)) for v in x.unbind(1)]).mean(0) for x in (a, b))
        return paired_bootstrap(torch.mean, one, two, groups=groups, draws=draws, seed=seed)

    def mean(rows: Tensor) -> float:
        return fmean(float(metric(v)) for v in rows.unbind(1))

    return paired_bootstrap(mean, a, b, groups=groups, draws=draws, seed=seed)


def grouped_difference(differences: Tensor, groups: Sequence[Hashable]) -> Interval:
    """Return the mean of ``differences`` with a 95 % interval over training seeds and groups of examples.

    A group counts as often as it has examples, so that the mean is that of a table of means.

    Args:
        differences: of a metric that is a mean over examples, shape (R seeds, N examples), float64.
        groups: of each example.
    """
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member = torch.tensor([names[group] for group in groups])
    count = torch.bincount(member).double()
    means = differences.new_zeros(len(differences), len(names)).index_add_(1, member, differences) / count
    return seeds_and_units(means * count / count.mean())


def signed(*values: float) -> str:
    """Return "difference [low, high]" with signs.

    >>> signed(0.25, -0.5, 1.0)
    '+.250 [−.500, +1.000]'
    """
    middle, low, high = (short(v, 3) if v < 0 else f"+{short(v, 3)}" for v in values)
    return f"{middle} [{low}, {high}]"


def mean_table(
    records: Sequence[Record],
    columns: Mapping[str, tuple[str, str]],
    first: str,
    *,
    reference: str = "clean",
    last: Mapping[str, Callable[[str], str]] | None = None,
) -> list[str]:
    """Return a Markdown table with a row per method in the order of the records: mean ± standard deviation over seeds.

    Args:
        records: of one split.
        columns: heading → (condition, metric); columns whose condition was measured for no method are left out.
        first: heading of the column of methods.
        reference: the condition whose records are counted as seeds.
        last: heading → (method → text) of further columns.
    """
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        cells[record.method, record.condition].append(record)
    methods = list(dict.fromkeys(record.method for record in records))
    shown = {h: (c, m) for h, (c, m) in columns.items() if any((method, c) in cells for method in methods)}
    further = dict(last or {})
    rows = [
        [method, str(len(cells[method, reference]))]
        + [cell([getattr(r, metric) for r in cells[method, c]]) for c, metric in shown.values()]
        + [text(method) for text in further.values()]
        for method in methods
    ]
    return markdown([first, "seeds", *shown, *further], rows)


def difference_table(found: Mapping[str, Mapping[str, PairedDifference]], reference: str, digits: int = 3) -> list[str]:
    """Return a Markdown table of what :func:`paired_differences` found: a row per method, a column per metric."""
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    rows = [[f"{m} − {reference}", *(_interval(row[n], digits) for n in names)] for m, row in found.items()]
    return markdown(["difference", *names], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in ([*head], ["---"] * len(head), *rows)]


def mean_of(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def short(value: float, digits: int = 2) -> str:
    """Write a number without the zero before its point, with a minus sign where it is negative; a dash for NaN.

    >>> short(0.5), short(-0.25), short(1.0), short(float("nan"))
    ('.50', '−.25', '1.00', '–')
    """
    if math.isnan(value):
        return "–"
    return ("−" if value < 0 else "") + re.sub(r"^0\.", ".", f"{abs(value):.{digits}f}")


def cell(values: Sequence[float], digits: int = 3) -> str:
    """Write mean ± standard deviation; numbers above ten, equal whole ones above one and equal counts without decimals.

    >>> cell([0.8, 0.9]), cell([0.8]), cell([]), cell([74113.0] * 2), cell([35.2, 39.0]), cell([8.0, 8.0]), cell([0, 0])
    ('.850 ± .071', '.800', '–', '74,113', '37 ± 3', '8', '0')
    """
    mean = mean_of(values)
    counts = bool(values) and all(isinstance(value, int) for value in values)
    if mean > 10 or ((mean > 1 or counts) and set(values) == {round(mean)}):
        spread = f" ± {stdev(values):,.0f}" if len(set(values)) > 1 and all(map(math.isfinite, values)) else ""
        return f"{mean:,.0f}{spread}"
    spread = f" ± {short(stdev(values), digits)}" if len(values) > 1 and all(map(math.isfinite, values)) else ""
    return short(mean, digits) + spread


def _interval(d: PairedDifference, digits: int) -> str:
    signed = [short(v, digits) if math.isnan(v) or v < 0 else f"+{short(v, digits)}" for v in d]
    return "–" if math.isnan(d.difference) else f"{signed[0]} [{signed[1]}, {signed[2]}]"


def rewrite(text: str, name: str, lines: Sequence[str]) -> str:
    """Put ``lines`` between the markers ``<!-- name -->`` and ``<!-- /name -->`` of ``text``.

    Raises:
        DataError: the markers are not there, once each.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    body = "\n".join(lines) + "\n"
    replaced, count = pattern.subn(lambda m: m.group(1) + body + m.group(2), text)
    if count != 1:
        raise DataError(f"The text has {count} pairs of markers <!-- {name} --> … <!-- /{name} -->; it needs one.")
    return replaced


def rewrite_file(path: Path, tables: Mapping[str, Sequence[str]]) -> None:
    """Put each table between the markers of its name in the file ``path``; see :func:`rewrite`."""
    text = path.read_text(encoding="utf-8")
    for name, lines in tables.items():
        text = rewrite(text, name, lines)
    path.write_text(text, encoding="utf-8")
