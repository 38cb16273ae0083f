"""One scored run under one condition, and the JSON list such records are kept in."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from bayes_adapters.analysis import metrics
from bayes_adapters.analysis._checks import require_fields, require_records
from bayes_adapters.devices import float64
from bayes_adapters.errors import DataError
from bayes_adapters.files._whole_file import replace_file
from bayes_adapters.likelihoods.prediction import PARTS

R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """The metrics of one method, seed, split and condition. A metric that is not defined or not measured is NaN.

    Args:
        method, split, condition: names, for example "caliber-x", "test", "white@5".
        seed: the training seed.
        n: number of examples.
        accuracy, ece: from 0 to 1; ``ece`` with 15 bins.
        auc: AUROC of the positive class.
        nll: nats. ``brier``: 0 to 2.
        auroc_error: AUROC of the **total** uncertainty, errors against correct answers.
        auroc_ood: AUROC of the **epistemic** part, this condition against an in-distribution reference.
        aurc: area under the risk–coverage curve by total uncertainty.
        samples: posterior samples of a prediction.
        seconds: wall-clock time of predicting all n examples.
        auroc_error_epistemic, auroc_ood_total: the same two with the other uncertainty.
        total, aleatoric, epistemic: mean uncertainty, nats.
        parameters: how many numbers were trained, of model and guide together.
    """

    method: str
    seed: int
    split: str
    condition: str
    n: int
    accuracy: float
    auc: float
    nll: float
    brier: float
    ece: float
    auroc_error: float
    auroc_ood: float
    aurc: float
    samples: int
    seconds: float
    auroc_error_epistemic: float = math.nan
    auroc_ood_total: float = math.nan
    total: float = math.nan
    aleatoric: float = math.nan
    epistemic: float = math.nan
    parameters: float = math.nan


def score(
    method: str,
    seed: int,
    split: str,
    condition: str,
    probs: Tensor,
    targets: Tensor,
    uncertainty: metrics.Decomposition,
    *,
    reference: metrics.Decomposition | None = None,
    samples: int,
    seconds: float,
) -> Record:
    """Return the :class:`Record` of one set of predictions.

    Args:
        method: name of the method.
        seed: the training seed.
        split: name of the split.
        condition: name of the condition.
        probs: mean predictive P(y=1), shape (N,), or class probabilities, shape (N, C).
        targets: class numbers, shape (N,).
        uncertainty: of the same N examples, nats, each shape (N,); see
            :func:`bayes_adapters.analysis.metrics.decompose`.
        reference: uncertainty on M in-distribution examples, each shape (M,): the negatives of ``auroc_ood``.
            None leaves both OOD numbers NaN.
        samples: posterior samples of a prediction.
        seconds: wall-clock time of predicting all N examples.

    >>> from bayes_adapters.analysis.metrics import decompose
    >>> draws = torch.tensor([[0.9, 0.2, 0.8], [0.7, 0.4, 0.4]])
    >>> record = score("lora", 0, "test", "clean", draws.mean(0), torch.tensor([1, 0, 0]), decompose(draws),
    ...                samples=2, seconds=0.1)
    >>> record.auroc_error, record.auroc_ood
    (1.0, nan)
    """
    wrong = 1.0 - metrics.correct(probs, targets).double()
    ood = [math.nan, math.nan]
    if reference is not None:
        foreign = torch.cat([torch.ones(len(uncertainty.total)), torch.zeros(len(reference.total))])
        ood = [metrics.auroc(torch.cat([getattr(uncertainty, k), getattr(reference, k)]), foreign) for k in PARTS[::2]]
    return Record(
        method=method,
        seed=seed,
        split=split,
        condition=condition,
        n=len(targets),
        accuracy=metrics.accuracy(probs, targets),
        auc=metrics.auc(probs, targets),
        nll=metrics.nll(probs, targets),
        brier=metrics.brier(probs, targets),
        ece=metrics.ece(probs, targets),
        auroc_error=metrics.auroc(uncertainty.total, wrong),
        auroc_ood=ood[1],
        aurc=metrics.aurc(uncertainty.total, wrong),
        samples=samples,
        seconds=seconds,
        auroc_error_epistemic=metrics.auroc(uncertainty.epistemic, wrong),
        auroc_ood_total=ood[0],
        **{k: float(float64(getattr(uncertainty, k)).mean()) for k in PARTS},
    )


def write_records(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write records as a JSON list, NaN as null, replacing the file in one step: a reader never sees half of it.

    Raises:
        DataError: a metric is infinite, which JSON cannot hold and no metric of this library is.

    >>> import tempfile
    >>> from dataclasses import fields
    >>> numbers = {f.name: 0.5 for f in fields(Record) if f.type == "float"}
    >>> names = {"method": "lora", "split": "test", "condition": "clean", "seed": 0, "n": 10, "samples": 1}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_records(f"{folder}/records.json", [Record(**names, **numbers)])
    ...     read_records(f"{folder}/records.json")[0].method
    'lora'
    """
    rows = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(record).items()}
        for record in records
    ]
    try:
        text = json.dumps(rows, indent=1, allow_nan=False)
    except ValueError as error:
        raise DataError(f"A record holds an infinite number, so {path} was not written: {error}.") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f"{text}\n".encode())


@overload
def read_records(path: str | os.PathLike[str]) -> list[Record]: ...


@overload
def read_records(path: str | os.PathLike[str], kind: type[R]) -> list[R]: ...


def read_records(path: str | os.PathLike[str], kind: type[Record] = Record) -> Sequence[Record]:
    """Read what :func:`write_records` wrote; null becomes NaN.

    Args:
        path: the file.
        kind: :class:`Record`, or a subclass with metrics of its own.

    Raises:
        DataError: not a JSON list of objects, or a key that is unknown or missing.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "metrics.json"
    >>> write_records(file, [])
    >>> read_records(file)
    []
    """
    try:
        rows: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}). Was it cut short, or written by something else?") from error
    require_records(path, rows)
    names = [f.name for f in fields(kind)]
    require_fields(path, rows, names)
    filled: list[dict[str, Any]] = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
    return [kind(**row) for row in filled]
