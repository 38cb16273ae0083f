"""The posterior predictive of a data set whose examples are dealt out to processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, PredictionOutput

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.inference.predictive import predict
from bayes_adapters.likelihoods import Prediction


class Predicted(PredictionOutput):  # type: ignore[misc]
    """What :meth:`BayesTrainer.predict` returns: predictions, label_ids and metrics, and the whole predictive."""

    predictive: Prediction
    """Of all examples, in the order of the data set."""


def output(found: Prediction, labels: Any, compute_metrics: Any, prefix: str) -> EvalLoopOutput:
    """Return a prediction as a Trainer reads it.

    Args:
        found: of all examples.
        labels: as numpy's arrays, or None.
        compute_metrics: ``EvalPrediction`` → name → number, or None.
        prefix: put before each metric's name.
    """
    metrics: dict[str, Any] = {name: float(float64(getattr(found, name)).mean()) for name in ("total", "epistemic")}
    if found.log_density is not None:
        metrics["nll"] = metrics["loss"] = -float(float64(found.log_density).mean())
    means = found.mean.cpu().numpy()
    if compute_metrics is not None and labels is not None:
        metrics |= compute_metrics(EvalPrediction(predictions=means, label_ids=labels))
    prefix = f"{prefix}_"
    named = {name if name.startswith(prefix) else prefix + name: _number(value) for name, value in metrics.items()}
    return EvalLoopOutput(means, labels, named, len(means))


def _number(value: Any) -> Any:
    """A number of numpy's or torch's as Python's, which a log can hold."""
    return value.item() if isinstance(value, np.generic | Tensor) and value.ndim == 0 else value


def predicted(elbo: ELBO, batches: Iterable[Batch], num_samples: int, seed: int) -> tuple[Prediction, Any]:
    """Return the prediction of all processes' examples, in the order of their numbers, and their labels.

    Args:
        elbo: of the model and its guide.
        batches: this process's, with ``index``.
        num_samples: S.
        seed: of the draws, which are a function of it and the example's number.

    Returns:
        The prediction on the CPU where there are several processes, and labels as numpy's array, or task → array, or
        None; rows of tokens are padded by −100.
    """
    index: list[Tensor] = []
    targets: list[Any] = []

    def seen(stream: Iterable[Batch]) -> Iterator[Batch]:
        for batch in stream:
            index.append(batch.ids.cpu())
            targets.append(batch.targets)
            yield batch

    stream = seen(batches)
    first = next(stream, None)
    mine: list[Any] = []
    if first is not None:
        found = predict(elbo.model, elbo.guide, chain([first], stream), num_samples=num_samples, seed=seed)
        mine = [(found, torch.cat(index), targets)]
    parts = _gathered(mine)
    order = torch.cat([numbers for _, numbers, _ in parts]).argsort()
    whole = parts[0][0] if len(parts) == 1 else Prediction.concatenate([part for part, _, _ in parts])
    return _sorted(whole, order), _labels([target for _, _, some in parts for target in some], order)


def _gathered(mine: list[Any]) -> list[Any]:
    """The parts of all processes."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
        return mine
    own = [(found.to("cpu"), index, [_cpu(target) for target in targets]) for found, index, targets in mine]
    every: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(every, own)
    return [part for parts in every for part in parts]


def _cpu(target: Any) -> Any:
    if isinstance(target, Mapping):
        return {task: value.cpu() for task, value in target.items()}
    return None if target is None else target.cpu()


def _sorted(found: Prediction, order: Tensor) -> Prediction:
    """The prediction with its examples in the order ``order``."""
    if bool((order == torch.arange(len(order))).all()):
        return found
    rows: dict[str, Any] = {}
    for name, value in vars(found).items():
        if isinstance(value, Tensor):
            rows[name] = value.index_select(1 if name == "samples" else 0, order.to(value.device))
    return replace(found, **rows, tasks={task: _sorted(part, order) for task, part in found.tasks.items()})


def _labels(targets: list[Any], order: Tensor) -> Any:
    if not targets or any(target is None for target in targets):
        return None
    if isinstance(targets[0], Mapping):
        return {task: _labels([target[task] for target in targets], order) for task in targets[0]}
    arrays = [target.cpu().numpy() for target in targets]
    if arrays[0].ndim > 1:
        longest = max(array.shape[1] for array in arrays)
        wide = [((0, 0), (0, longest - array.shape[1])) for array in arrays]
        arrays = [np.pad(array, by, constant_values=-100) for array, by in zip(arrays, wide, strict=True)]
    return np.concatenate(arrays)[order.numpy()]
