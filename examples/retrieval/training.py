"""Train one method: dual encoders on pairs that belong together, pair scorers on right and wrong ones."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Frames
from bayes_adapters.training import fit
from examples.retrieval.data import Split, Stream, Task
from examples.retrieval.methods import Method, find
from examples.retrieval.ridge import ridge
from examples.studies.rates import rise_and_decline

CONDITIONS = (
    "clean", "white@10", "white@0", "white@-5", "babble@10", "babble@0", "babble@-5", "reverb", "ood-es", "ood-ru",
)  # fmt: skip
MIX = {"clean": 0.6, "white@10": 0.1, "white@5": 0.1, "white@0": 0.1, "white@-5": 0.1}
_PARTS = ("train", "validation")


@dataclass(frozen=True)
class Settings:
    """What is the same for every method.

    Args:
        epochs: passes of methods whose encoders have run; the one with the lowest validation NLL is kept.
        adapted_epochs: of dual encoders that adapt MiniLM.
        pair_epochs: of pair scorers that do; half as many where pairs are lists, which have twice the rows.
        batch_size: recordings of a batch of dual encoders: each chooses among as many scripts.
        pair_batch: recordings of a batch of pair scorers.
        wrong: wrong scripts of a list, where pairs are trained as lists; otherwise a recording has one.
        near: from how many of the nearest scripts half of the wrong ones are drawn.
        mix: condition → probability for training recordings; validation recordings are clean.
        size: g, scripts of a list.
        again: how many of a list are ranked again.
        samples: posterior draws at test, of dual encoders.
        pair_samples: of pair scorers.
        risk: the share of all queries that may be answered wrongly.
        conditions: what dual encoders are measured under, clean first.
        pair_conditions: what pair scorers are.
    """

    epochs: int = 30
    adapted_epochs: int = 10
    pair_epochs: int = 20
    batch_size: int = 32
    pair_batch: int = 16
    wrong: int = 3
    near: int = 10
    mix: Mapping[str, float] = field(default_factory=lambda: dict(MIX))
    size: int = 40
    again: int = 6
    samples: int = 10
    pair_samples: int = 4
    risk: float = 0.1
    conditions: Sequence[str] = CONDITIONS
    pair_conditions: Sequence[str] = ("clean", "white@-5", "babble@-5", "ood-es")


@dataclass(frozen=True)
class Trained:
    """A trained method.

    Args:
        name, seed: which.
        members: trained in place; none of the ridge.
        weight: W of the ridge, (d_text, d_audio), and the means and scales of both sides.
        tried: the (learning rate, KL weight) that was chosen; NaN of the ridge.
        validation_nll: of the best epoch, a mean over members.
        parameters: how many numbers were trained, of all members.
        seconds: processor time.
    """

    name: str
    seed: int
    members: list[tuple[AdapterModel, AdapterGuide]]
    weight: tuple[Tensor, ...] = ()
    tried: tuple[float, float] = (math.nan, math.nan)
    validation_nll: float = math.nan
    parameters: int = 0
    seconds: float = 0.0

    @property
    def method(self) -> Method:
        """What it is."""
        return find(self.name)


def pair_batch(task: Task, split: Split, rows: Sequence[int], conditions: Sequence[str], encoded: bool) -> Batch:
    """Return recordings with their scripts, of which each is one pair; targets are the numbers of groups."""
    inputs = task.text_side(split, rows, encoded) | task.audio_side(split, rows, conditions)
    return Batch(inputs, split.groups[list(rows)], index=torch.tensor(list(rows)))


def beside(
    task: Task, split: Split, rows: Sequence[int], groups: Sequence[int], conditions: Sequence[str], method: Method
) -> Batch:
    """Return recordings beside scripts, row by row: inputs of two encoders, or audio as context."""
    scripts = [split.scripts[group] for group in groups]
    context: dict[str, Frames] = {}
    if method.halved:
        inputs = task.text_side(split, scripts, False) | task.audio_below(split, rows, conditions)
    elif method.encoded:
        inputs = task.text_side(split, scripts, True) | task.audio_side(split, rows, conditions)
    else:
        ids, mask = split.ids(scripts)
        inputs, context = {"input_ids": ids, "attention_mask": mask}, {"audio": split.frames(rows, conditions)}
    numbers = [row * len(split.scripts) + group for row, group in zip(rows, groups, strict=True)]
    return Batch(inputs, None, context, torch.tensor(numbers))


def with_wrong(
    task: Task,
    split: Split,
    near: Int[Tensor, "n k"],
    method: Method,
    wrong: int,
    rows: Sequence[int],
    conditions: Sequence[str],
    source: random.Random,
) -> Batch:
    """Return each recording beside its script and beside wrong ones, half of them among the nearest.

    Args:
        task: the data.
        split: where recordings and scripts are from.
        near: wrong scripts that a dual encoder finds nearest, of each recording.
        method: says whether pairs are lists, and whether encoders have run.
        wrong: how many wrong scripts a recording has.
        rows: numbers of the recordings.
        conditions: of each.
        source: of randomness.

    Returns:
        Targets (B,) in {0, 1}, or of lists (B, 2), for ``Candidates``.
    """
    asked, said, marks = [], [], []
    for row in rows:
        own = int(split.groups[row])
        chosen = [own]
        while len(chosen) <= wrong:
            close = source.random() < 0.5
            other = source.choice(near[row].tolist()) if close else source.randrange(len(split.scripts))
            if other not in chosen:
                chosen.append(other)
        asked += [row] * len(chosen)
        said += chosen
        marks += [1] + [0] * wrong
    heard = [condition for condition in conditions for _ in range(1 + wrong)]
    batch = beside(task, split, asked, said, heard, method)
    right = torch.tensor(marks)
    targets = torch.stack([torch.tensor(asked), right], -1) if method.lists else right.float()
    return Batch(batch.inputs, targets, batch.context, batch.index)


def train(
    task: Task, name: str, seed: int, settings: Settings, near: Mapping[str, Int[Tensor, "n k"]] | None = None
) -> Trained:
    """Train ``name``; of its tries the one with the lowest validation NLL is kept.

    Args:
        task: the data.
        name: of :data:`examples.retrieval.methods.METHODS`.
        seed: of initialisation, order, conditions, wrong scripts and draws; member m has ``1000 m + seed``.
        settings: of all methods.
        near: for pair scorers, ``train`` and ``validation`` → the wrong scripts that are nearest to each recording; see
            :func:`examples.retrieval.scoring.nearest`.
    """
    begun, method = time.process_time(), find(name)
    if method.build is None:
        weight, nll = ridge(task)
        spent = time.process_time() - begun
        return Trained(name, seed, [], weight, (math.nan, math.nan), nll, weight[0].numel(), spent)
    members, values, chosen = [], [], method.tries
    for number in range(method.members):
        found = [(*_fit(task, method, 1000 * number + seed, settings, one, near or {}), one) for one in chosen]
        best = min(found, key=lambda one: one[2])
        members.append((best[0], best[1]))
        values.append(best[2])
        chosen = (best[3],)  # that of the first member serves the others
    parts = [p for model, guide in members for p in [*model.trainable_parameters().values(), *guide.parameters()]]
    count, spent = sum(p.numel() for p in parts), time.process_time() - begun
    return Trained(name, seed, members, (), chosen[0], sum(values) / len(values), count, spent)


def _fit(
    task: Task, method: Method, seed: int, settings: Settings, one: tuple[float, float], near: Mapping[str, Tensor]
) -> tuple[AdapterModel, AdapterGuide, float]:
    assert method.build is not None
    rate, weight = one
    torch.manual_seed(seed)
    model, guide = method.build(task)
    training, held_out = (task.splits[part] for part in _PARTS)
    rows = list(range(len(held_out.keys)))
    if method.pairs:
        wrong = settings.wrong if method.lists else 1
        make: Any = partial(with_wrong, task, training, near["train"], method, wrong)
        source = random.Random("validation")
        own = (task, held_out, near["validation"], method, wrong)
        validation = [with_wrong(*own, some, ["clean"] * len(some), source) for some in _cut(rows, settings.pair_batch)]
        adapted = max(1, settings.pair_epochs // (2 if method.lists else 1))
        epochs, size = settings.epochs if method.encoded else adapted, settings.pair_batch
    else:

        def make(rows: Sequence[int], conditions: Sequence[str], _: random.Random) -> Batch:
            return pair_batch(task, training, rows, conditions, method.encoded)

        validation = [pair_batch(task, held_out, rows, ["clean"] * len(rows), method.encoded)]
        epochs, size = settings.epochs if method.encoded else settings.adapted_epochs, settings.batch_size
    data: Any = Stream(training, make, settings.mix, size, seed)
    result = fit(
        model,
        guide,
        data,
        recipe=None,  # all methods alike, by the settings of the study
        epochs=epochs,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate),
        scheduler=rise_and_decline(epochs * len(data)),
        kl_weight=weight,
        clip_norm=1.0,
        validation=validation,
        num_samples=4 if method.random and method.members == 1 else 1,
        seed=seed,
        progress=False,
    )
    return model, guide, math.inf if result.best_value is None else result.best_value


def _cut(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
