"""Train one method on one task with one seed, and measure it on seen speakers, under noise, and on unseen speakers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayes_adapters import Prediction, predict
from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.grounding import ause, mask_iou
from bayes_adapters.analysis.metrics import Decomposition
from bayes_adapters.analysis.records import score
from bayes_adapters.training import fit
from examples.av_events.methods import METHODS, Pair, build
from examples.av_events.records import Result, Row
from examples.av_events.task import CONDITIONS, SEEN, Batches, Examples, Settings, Task
from examples.studies.rates import rise_and_decline

_FLOOR = 1e-7
"""The smallest probability that counts, as in :func:`bayes_adapters.analysis.metrics.nll`."""


def train(
    method: str, encoders: Mapping[str, nn.Module], data: Mapping[str, Examples], seed: int, settings: Settings
) -> Pair:
    """Train a method on ``data["train"]``; keep the epoch with the lowest NLL on ``data["validation"]``.

    Args:
        method: of :data:`~examples.av_events.methods.METHODS`.
        encoders: upper halves of ``vision`` and ``audio``; they are copied.
        data: of one task.
        seed: of initialisation, order and draws.
        settings: see there.
    """
    torch.manual_seed(seed)
    own = data["train"]
    model, guide = build(method, own.task, encoders, len(own), settings)
    batches = Batches(own, settings.batch_size, seed)
    steps = settings.epochs * len(batches)
    fit(
        model,
        guide,
        batches,
        recipe=None,  # all methods alike, by the settings of the study
        epochs=settings.epochs,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=settings.lr),
        scheduler=rise_and_decline(steps, warm=max(1, steps // 10)),
        clip_norm=1.0,
        validation=list(Batches(data["validation"], settings.batch_size, None)),
        seed=seed,
        progress=False,
        **METHODS[method].training(settings),
    )
    return model, guide


def answers(
    said: Prediction, data: Examples
) -> tuple[Float[Tensor, "N L C"], Int[Tensor, "N L"], dict[str, Float[Tensor, "N L"]]]:
    """Return class probabilities, labels and uncertainties of the L segments or pixels of each example, float64."""
    probs = said.mean.double()
    if data.task is Task.MASKS:
        probs = torch.stack([1 - probs, probs], -1).flatten(1, 2)
    parts = {name: getattr(said, name).double().flatten(1) for name in Decomposition._fields}
    return probs, data.targets.flatten(1), parts


def losses(probs: Float[Tensor, "N L C"], labels: Int[Tensor, "N L"]) -> Float[Tensor, "N L"]:
    """Return ``−log p(y)`` of every label, nats."""
    return -probs.gather(-1, labels[..., None])[..., 0].clamp(min=_FLOOR).log()


def measure(
    name: str,
    pair: Pair,
    data: Mapping[str, Examples],
    seed: int,
    settings: Settings,
    samples: int,
    train_seconds: float = float("nan"),
) -> tuple[list[Result], list[Row]]:
    """Test a trained method under every condition.

    Args:
        name: of the method, in records and rows.
        pair: trained model and guide.
        data: of one task.
        seed: of training, and of the draws.
        settings: see there.
        samples: posterior draws.
        train_seconds: for the records.
    """
    model, guide = pair
    started = time.process_time()

    def said(part: Examples) -> Prediction:
        return predict(model, guide, Batches(part, settings.batch_size, None), num_samples=samples, seed=seed)

    probs, labels, _ = answers(said(data["validation"]), data["validation"])
    scaling = TemperatureScaling.fit(probs.flatten(0, 1), labels.flatten())
    trained = [p for p in [*model.parameters(), *guide.parameters()] if p.requires_grad]
    size = sum(p.numel() for p in trained)
    records: list[Result] = []
    rows: list[Row] = []
    reference: dict[str, Tensor] = {}
    for condition in CONDITIONS:
        part, begun = data[condition], time.perf_counter()
        prediction = said(part)
        seconds = time.perf_counter() - begun
        probs, labels, parts = answers(prediction, part)
        scaled = scaling.rows(probs)
        flat, wanted = probs.flatten(0, 1), labels.flatten()
        units = {k: v.mean(1) for k, v in parts.items()}
        split = Decomposition(*(v.flatten() for v in parts.values()))
        plain = score(name, seed, "test", condition, flat, wanted, split, samples=samples, seconds=seconds)
        masks = part.task is Task.MASKS
        overlap = mask_iou(prediction.mean, part.targets) if masks else None
        right = (probs.argmax(-1) == labels).double().mean(1) if overlap is None else overlap
        ood = {k: _told_apart(units[k], reference[k]) for k in ("total", "epistemic")} if reference else {}
        records.append(
            Result(
                **replace(
                    plain,
                    auroc_ood=ood.get("epistemic", plain.auroc_ood),
                    auroc_ood_total=ood.get("total", plain.auroc_ood_total),
                    parameters=size,
                ).__dict__,
                iou=float("nan") if overlap is None else float(overlap.mean()),
                ause=ause(split.total, 1 - flat.gather(-1, wanted[:, None])[:, 0]),
                temperature=scaling.temperature,
                nll_scaled=metrics.nll(scaled.flatten(0, 1), wanted),
                ece_scaled=metrics.ece(scaled.flatten(0, 1), wanted),
                train_seconds=train_seconds,
            )
        )
        columns = (right, losses(probs, labels).mean(1), losses(scaled, labels).mean(1))
        numbers = torch.stack([*columns, units["total"], units["epistemic"]], -1).tolist()
        rows += [Row(name, seed, condition, unit, *values) for unit, values in enumerate(numbers)]
        if condition == SEEN:
            reference = units
    spent = time.process_time() - started
    return [replace(record, test_seconds=spent) for record in records], rows


def _told_apart(here: Tensor, reference: Tensor) -> float:
    """AUROC of an uncertainty, clips or frames of this condition against those of the reference."""
    foreign = torch.cat([torch.ones(len(here)), torch.zeros(len(reference))])
    return metrics.auroc(torch.cat([here, reference]), foreign)


def run(
    name: str,
    method: str,
    encoders: Mapping[str, nn.Module],
    data: Mapping[str, Examples],
    seed: int,
    settings: Settings,
) -> tuple[list[Result], list[Row]]:
    """Train and measure; see :func:`train` and :func:`measure`."""
    started = time.process_time()
    pair = train(method, encoders, data, seed, settings)
    samples = settings.samples if METHODS[method].random else 1
    return measure(name, pair, data, seed, settings, samples, time.process_time() - started)
