"""Train one method with one seed on sums, let it answer, calibrate a guard, and measure what the guard lets through."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bayes_adapters import Batch, predict
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.metrics import aurc, auroc, entropy
from bayes_adapters.analysis.records import Record
from bayes_adapters.analysis.selection import selective
from bayes_adapters.data.texts import IGNORED, completions, prompts
from bayes_adapters.generation import Generation, generate
from examples.generation.experiment import Settings, Trained, train
from examples.generation.experiment import Task as Corpus
from examples.generation.states import States
from examples.guardrail.methods import METHODS
from examples.guardrail.questions import Question
from examples.studies.decoder import join

CALIBRATION = "calibration"
"""The questions, of the kind that is learnt, to which threshold and temperature are fitted."""
SCORES = ("total", "epistemic", "probability", "temperature")
"""Larger where less sure: the mean total and epistemic of an answer's tokens; −log p of the answer; and the mean total
at one temperature, fitted to the right answers of the calibration questions."""


@dataclass(frozen=True)
class Options:
    """What is the same for every method.

    Args:
        learnt: sums to learn.
        calibration: questions that the guard is calibrated on.
        asked: questions of every kind that are measured.
        risk: the share of all answers that may be given and wrong.
        prompt: tokens of a question, with its answer where that is learnt.
        longest: tokens of an answer.
        at_once: questions of a batch.
        training: of the adapters; they are in all layers but the lowest, since a few at the top do not learn to add.
    """

    learnt: int = 960
    calibration: int = 120
    asked: int = 80
    risk: float = 0.1
    prompt: int = 64
    longest: int = 6
    at_once: int = 40
    training: Settings = field(default_factory=lambda: Settings(layers=29, epochs=1, batch_size=8, lr=2e-3, samples=5))


@dataclass(frozen=True)
class Task:
    """What one run reads.

    Args:
        train: questions with their answers, to learn.
        asked: kind, and :data:`CALIBRATION` → questions.
        top: makes the upper layers of the language model, anew for each member.
        whole: the language model that they were cut from.
        tokenizer: its.
    """

    train: States
    asked: Mapping[str, Sequence[Question]]
    top: Callable[[], nn.Module]
    whole: nn.Module
    tokenizer: Any


@dataclass(frozen=True)
class Result(Record):
    """A record of this study: of one kind of questions and one score.

    ``accuracy`` is that of all answers, without a guard; ``auroc_error`` and ``aurc`` are by ``score``; ``samples`` are
    passes of the language model per token that is written; ``seconds`` of writing all answers.

    Args:
        score: of :data:`SCORES`.
        handed: the share of questions that the guard hands to the tool.
        given_wrong: the share of all questions that are answered and wrong.
        train_seconds: of all members.
    """

    score: str = ""
    handed: float = math.nan
    given_wrong: float = math.nan
    train_seconds: float = math.nan


class Row(NamedTuple):
    """One answer: what was asked and written, whether it is wrong, and its scores."""

    method: str
    seed: int
    kind: str
    question: str
    text: str
    wrong: int
    total: float
    epistemic: float
    probability: float
    temperature: float


def run(task: Task, name: str, seed: int, options: Options) -> tuple[list[Result], list[Row]]:
    """Train one method with one seed, let it answer every question, and measure."""
    method = METHODS[name]
    trained = train(Corpus(task.train, {}, task.top), method, seed, options.training)
    join(trained.model.backbone, task.whole)
    fitted = None if method.random else _temperature(task, trained, options)
    said: dict[str, list[Row]] = {}
    seconds: dict[str, float] = {}
    for kind in task.asked:
        begun = time.perf_counter()
        said[kind] = _answered(task, name, seed, kind, trained, fitted, options)
        seconds[kind] = time.perf_counter() - begun
    scores = [score for score in SCORES if not math.isnan(getattr(said[CALIBRATION][0], score))]
    results = [
        replace(_result(name, seed, kind, score, said, trained, options.risk), seconds=seconds[kind])
        for kind in task.asked
        for score in scores
        if kind != CALIBRATION
    ]
    return results, [row for rows in said.values() for row in rows]


@torch.no_grad()
def _answered(
    task: Task,
    name: str,
    seed: int,
    kind: str,
    trained: Trained,
    fitted: TemperatureScaling | None,
    options: Options,
) -> list[Row]:
    questions, rows = task.asked[kind], []
    for start in range(0, len(questions), options.at_once):
        some = questions[start : start + options.at_once]
        batch = prompts(task.tokenizer, [q.text for q in some], longest=options.prompt)
        said = generate(
            trained.model, trained.guide, batch, num_samples=trained.samples, seed=seed, tokenizer=task.tokenizer,
            max_new_tokens=options.longest, do_sample=False,
        )  # fmt: skip
        heated = [math.nan] * len(some) if fitted is None else _heated(trained, batch, said, fitted).tolist()
        epistemic = said.mean("epistemic").tolist() if trained.samples > 1 else [math.nan] * len(some)
        columns = zip(
            some, said.texts or (), said.mean("total").tolist(), epistemic, said.sequence_log_prob.tolist(), heated,
            strict=True,
        )  # fmt: skip
        for question, text, total, own, log_prob, hot in columns:
            written = text.strip()
            wrong = int(written != question.answer)
            rows.append(Row(name, seed, kind, question.text, written, wrong, total, own, -log_prob, hot))
    return rows


def _probabilities(trained: Trained, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return p of every word of the vocabulary at the labelled tokens, (n, V), the labels (n,), and their rows (n,)."""
    likelihood: Any = trained.model.likelihood
    likelihood.top = likelihood.num_outputs  # a prediction keeps the most probable words: all of them
    found: Any = predict(trained.model, trained.guide, batch, num_samples=1)
    scored = found.scored
    probs = torch.zeros(int(scored.sum()), likelihood.num_outputs)
    probs.scatter_(1, found.tokens[scored].long(), found.mean[scored])
    labels: Any = batch.targets
    return probs, labels[scored], scored.nonzero()[:, 0]


def _temperature(task: Task, trained: Trained, options: Options) -> TemperatureScaling:
    """Fit the temperature of the next token to the right answers of the calibration questions."""
    asked, probs, labels = task.asked[CALIBRATION], [], []
    for start in range(0, len(asked), options.at_once):
        some = asked[start : start + options.at_once]
        batch = completions(task.tokenizer, [q.text for q in some], [q.answer for q in some], longest=options.prompt)
        found = _probabilities(trained, batch)
        probs.append(found[0])
        labels.append(found[1])
    return TemperatureScaling.fit(torch.cat(probs), torch.cat(labels))


def _heated(trained: Trained, batch: Batch, said: Generation, fitted: TemperatureScaling) -> Tensor:
    """Return each answer's mean entropy at the fitted temperature: a second pass, over what was written."""
    inputs = {
        "input_ids": torch.cat([batch.inputs["input_ids"], torch.where(said.written, said.tokens, 0)], 1),
        "attention_mask": torch.cat([batch.inputs["attention_mask"], said.written.long()], 1),
    }
    given = torch.full_like(batch.inputs["input_ids"], IGNORED)
    labels = torch.cat([given, torch.where(said.written, said.tokens, IGNORED)], 1)
    probs, _, rows = _probabilities(trained, Batch(inputs, labels))
    sums = torch.zeros(len(said.tokens), dtype=torch.float64)
    return sums.index_add(0, rows, entropy(fitted.rows(probs))) / said.lengths


def _result(
    name: str, seed: int, kind: str, score: str, said: Mapping[str, Sequence[Row]], trained: Trained, risk: float
) -> Result:
    def columns(of: str) -> tuple[Tensor, Tensor]:
        rows = said[of]
        return torch.tensor([getattr(r, score) for r in rows]).double(), torch.tensor([r.wrong for r in rows]).double()

    threshold = selective(*columns(CALIBRATION), risk=risk).threshold
    unsure, wrong = columns(kind)
    answered = unsure <= threshold
    undefined = dict.fromkeys(("auc", "nll", "brier", "ece", "auroc_ood"), math.nan)
    return Result(
        method=name,
        seed=seed,
        split="test",
        condition=kind,
        n=len(wrong),
        accuracy=float(1 - wrong.mean()),
        auroc_error=auroc(unsure, wrong) if 0 < wrong.sum() < len(wrong) else math.nan,
        aurc=aurc(unsure, wrong),
        samples=trained.samples,
        seconds=math.nan,
        parameters=trained.parameters,
        score=score,
        handed=float(1 - answered.double().mean()),
        given_wrong=float((wrong * answered).mean()),
        train_seconds=trained.seconds,
        **undefined,
    )
