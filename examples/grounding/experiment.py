"""What a trained method finds in three splits: seen kinds, held-out kinds, and another drawer's pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bayes_adapters import Batch, Prediction, adapted_layers, predict
from bayes_adapters.analysis.conformal import ConformalIntervals
from bayes_adapters.analysis.grounding import ause, box_iou, mask_iou, pavpu
from bayes_adapters.modalities.blocks import blocks_of
from examples.grounding.examples import BOX, MASK, Examples
from examples.grounding.methods import TASKS, find
from examples.grounding.records import Gain, Result, Row
from examples.grounding.scores import scored
from examples.grounding.training import Study, Trained, train

CONDITIONS = ("test", "kinds", "drawer")
"""Splits that are measured: seen kinds, held-out kinds, and seen kinds of another drawer."""
LINEARS = ("query", "key", "value", "output", "fc1", "fc2")
_CERTAIN = 0.5 * math.log(2)


def measure(study: Study, name: str, trained: Trained) -> tuple[list[Result], list[Row]]:
    """Return a record per split, and a row per expression."""
    _, task = find(name)
    conformal = None
    if BOX in TASKS[task]:
        data = study.examples("validation", task, trained.frozen)
        said = Prediction.concatenate([found[BOX] for _, found in _answers(trained, data, study.seed)])
        wanted = torch.cat([batch.targets[BOX] for batch in data.in_order(64)])  # type: ignore[index]
        conformal = ConformalIntervals.fit(said, wanted, alpha=study.settings.alpha)
    rows: list[Row] = []
    results: list[Result] = []
    for condition in CONDITIONS:
        begun = time.process_time()
        own, side = _rows(study, name, condition, trained, conformal)
        seconds = time.process_time() - begun
        reference = own if not rows else [row for row in rows if row.condition == CONDITIONS[0]]
        rows += own
        result = scored(own, reference, samples=trained.samples, seconds=seconds)
        results.append(
            replace(
                result,
                side=side,
                parameters=float(trained.parameters),
                weight=float(trained.model.likelihood.weights[MASK]),  # type: ignore[index]
                train_seconds=trained.seconds,
                step_seconds=trained.seconds / max(1, trained.fitted.steps),
            )
        )
    return results, rows


def _answers(trained: Trained, data: Examples, seed: int) -> Iterator[tuple[Batch, Prediction]]:
    """Yield each batch with what is said of it; the density is that of what the data ask."""
    for batch in data.in_order(64):
        yield batch, predict(trained.model, trained.guide, batch, num_samples=trained.samples, seed=seed)


def _rows(
    study: Study, name: str, condition: str, trained: Trained, conformal: ConformalIntervals | None
) -> tuple[list[Row], float]:
    """Return a row per expression, and the mean length of conformal intervals."""
    task, rows, sides = find(name)[1], [], []
    data = study.splits[condition]
    # The density of the box alone is asked, for that of a mask is taken from its mean probabilities.
    asked = replace(study.examples(condition, task, trained.frozen), asked=TASKS[task][:1])
    for batch, said in _answers(trained, asked, study.seed):
        found: dict[str, Sequence[float]] = {}
        if conformal is not None and isinstance(batch.targets, Mapping):
            columns, side = _box_columns(said, batch.targets[BOX], conformal)
            found |= columns
            sides.append(side)
        if MASK in TASKS[task]:
            found |= _mask_columns(said[MASK], data.masks(batch.ids).long())
        for place, key in enumerate(batch.ids.tolist()):
            own = {column: values[place] for column, values in found.items()}
            scene = int(data.scene[key])
            rows.append(Row(name, study.seed, condition, key, scene, data.expressions[key].form, **own))
    return rows, float(torch.cat(sides).mean()) if sides else math.nan


def _box_columns(
    said: Prediction, wanted: Tensor, conformal: ConformalIntervals
) -> tuple[dict[str, Sequence[float]], Tensor]:
    box, whole = said[BOX], said[BOX].summed()
    ends = conformal.sets(box)
    covered = ((ends[..., 0] <= wanted) & (wanted <= ends[..., 1])).all(-1)
    density = said.log_density
    columns: dict[str, Sequence[float]] = {
        "box_iou": box_iou(box.mean, wanted).tolist(),
        "box_nll": [math.nan] * len(wanted) if density is None else (-density).tolist(),
        "covered": covered.float().tolist(),
        "box_total": whole.total.tolist(),
        "box_epistemic": whole.epistemic.tolist(),
    }
    return columns, (ends[..., 1] - ends[..., 0]).mean(-1)


def _mask_columns(said: Prediction, wanted: Tensor) -> dict[str, Sequence[float]]:
    probs = said.mean.double()
    found, meant = probs > 0.5, wanted == 1
    of_label = torch.where(meant, probs, 1 - probs).clamp_min(1e-7)
    right = found == meant
    patches = [
        pavpu(u[None], ok[None], threshold=_CERTAIN, patch=(8, 8)).pavpu
        for u, ok in zip(said.total, right, strict=True)
    ]
    return {
        "mask_iou": mask_iou(probs, wanted).tolist(),
        "mask_nll": (-of_label.log()).flatten(1).mean(1).tolist(),
        "shared": (found & meant).flatten(1).sum(1).double().tolist(),
        "union": (found | meant).flatten(1).sum(1).double().tolist(),
        "ause": [ause(u, 1 - p) for u, p in zip(said.total, of_label, strict=True)],
        "pavpu": patches,
        "mask_total": said.total.flatten(1).mean(1).tolist(),
        "mask_epistemic": said.epistemic.flatten(1).mean(1).tolist(),
    }


def gains(study: Study, name: str, trained: Trained) -> list[Gain]:
    """Return every λ of a CoLA by encoder, block and linear layer; nothing of other methods."""
    layers = adapted_layers(trained.model.backbone)
    if not any(layer.inter for layer in layers.values()):
        return []
    encoders: nn.ModuleDict = study.encoders()
    return [
        Gain(name, study.seed, encoder, depth, linear, path.gain.item())  # type: ignore[operator]
        for encoder, blocks in blocks_of(encoders).items()
        for depth, block in enumerate(blocks)
        for linear, place in zip(LINEARS, block.linears, strict=True)
        for path in layers[f"{encoder}.{place}"].inter.values()
    ]


def run(study: Study, name: str) -> tuple[list[Result], list[Row], list[Gain]]:
    """Train and measure one row of the study."""
    trained = train(study, name)
    results, rows = measure(study, name, trained)
    return results, rows, gains(study, name, trained)
