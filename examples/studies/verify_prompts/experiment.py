"""Train one method with one seed, and measure it under every condition."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bayes_adapters import AdapterGuide, AdapterModel, predict
from bayes_adapters.analysis.metrics import Decomposition, correct
from bayes_adapters.analysis.records import Record, score
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.reliability import Reliability
from bayes_adapters.training import fit
from examples.studies.rates import rise_and_decline
from examples.studies.verify_prompts.after import Finishing, Judge, Validated, risk_limit
from examples.studies.verify_prompts.corpus import Corpus, PairBatches
from examples.studies.verify_prompts.dataset import MISSING
from examples.studies.verify_prompts.methods import Build, find
from examples.studies.verify_prompts.predictions import Prediction as PairPrediction
from examples.studies.verify_prompts.report import CONDITIONS

PLAIN = {"clean": 1.0}
"""Training recordings as they are."""
CORRUPTED = {"clean": 0.5, "white@10": 0.1, "white@5": 0.1, "white@0": 0.1, "white@-5": 0.1, MISSING: 0.1}
"""Half of the training recordings under white noise or withheld; babble, reverberation and clipping stay unseen."""
VERIFY_SAMPLES = 32
"""Posterior draws of ``bayes-adapters verify``; its thresholds are measured with as many."""


@dataclass(frozen=True)
class Settings:
    """What is the same for every method of a comparison.

    Args:
        epochs: passes over the training pairs; the epoch with the lowest validation NLL is kept.
        batch_size: pairs a step.
        lr: peak learning rate of AdamW, after a warm-up of 30 steps, then linear decay.
        kl_weight: weight of the KL per nat (1 is the ELBO), where the method has no weight of its own.
        prior_scale: β of N(0, β²).
        mix: condition → probability for training recordings; validation sees the same mix.
        reliability: fall back to the prior's mean where frames are far from the training frames.
        fallback, fallback_scale: what is fallen back to there, and its standard deviation (None takes the prior's).
        quantile: share of recordings like those of training that are trusted fully.
        samples: posterior draws at test.
        conditions: what is measured.
        device: torch device.
    """

    epochs: int = 20
    batch_size: int = 16
    lr: float = 1e-3
    kl_weight: float = 1e-4
    prior_scale: float = 0.2
    mix: Mapping[str, float] = field(default_factory=lambda: dict(CORRUPTED))
    reliability: bool = True
    fallback: str = "widen"
    fallback_scale: float | None = 1.0
    quantile: float = 0.8
    samples: int = 10
    conditions: Sequence[str] = CONDITIONS
    device: str = "cpu"


@dataclass(frozen=True)
class Trained:
    """A trained method.

    Args:
        method, seed: which.
        model, guide: trained in place.
        history: of ``fit``.
        seconds: wall-clock time of training.
        parameters: how many numbers were trained, of model and guide together.
        judge: what is done with its predictions, if anything.
    """

    method: str
    seed: int
    model: AdapterModel
    guide: AdapterGuide
    history: list[dict[str, float]]
    seconds: float
    parameters: int
    judge: Judge | None = None

    @property
    def samples(self) -> bool:
        """Whether predictions differ from draw to draw."""
        return find(self.method).random


def train(
    corpus: Corpus,
    method: str,
    seed: int,
    settings: Settings,
    checkpoint: Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> Trained:
    """Train ``method`` and keep the epoch with the lowest validation NLL.

    Args:
        corpus: the data.
        method: a name of :data:`examples.studies.verify_prompts.methods.METHODS`.
        seed: of initialisation, order, wrong scripts, corruptions and posterior draws.
        settings: shared by all methods.
        checkpoint: where an interrupted run goes on from; None keeps nothing.
        advance: called with 1 after each of :func:`training_steps`, in the place of a bar or lines; None shows those.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    chosen = find(method)
    corpus = corpus.heard() if chosen.hears else corpus
    data = PairBatches(corpus.training(settings.mix, seed=seed), settings.batch_size, shuffle=True, seed=seed)
    reliability = None
    if settings.reliability and chosen.reads_frames:
        reliability = Reliability(
            corpus.density(settings.mix, settings.quantile),
            settings.fallback,
            settings.fallback_scale,
        )
    parts = Build(
        corpus.backbone(),
        corpus.frame_width,
        prior_scale=settings.prior_scale,
        reliability=reliability,
        num_data=len(data.dataset),
        options=corpus.options,
    )
    model, guide = chosen.build(parts)
    model.to(settings.device)
    guide.to(settings.device)
    validation = validation_batches(corpus, settings)
    result = fit(
        model,
        guide,
        data,
        recipe=None,  # all methods alike, by the settings of the study
        epochs=settings.epochs,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=settings.lr),
        scheduler=rise_and_decline(settings.epochs * len(data)),
        kl_weight=settings.kl_weight if chosen.kl_weight is None else chosen.kl_weight,
        clip_norm=1.0,
        validation=validation,
        num_samples=4 if chosen.random and chosen.random_in_training else 1,
        seed=seed,
        checkpoint=checkpoint,
        progress=advance is None,
        on_step=None if advance is None else lambda *_: advance(1),
    )
    numbers = [*model.trainable_parameters().values(), *guide.parameters()]
    parameters = sum(parameter.numel() for parameter in numbers)
    if chosen.finish is not None:
        draws = settings.samples if chosen.random else 1
        run = Finishing(data, len(data.dataset), validation, seed, draws)
        model, guide = chosen.finish(model, guide, run)
    trained = Trained(method, seed, model, guide, result.history, time.perf_counter() - started, parameters)
    if chosen.judge is None:
        return trained
    validated = Validated(
        _predicted(trained, validation, settings, keep=True),
        torch.cat([batch.targets for batch in validation]),
        lambda: corpus.density(settings.mix, 0.95, moments=True),
    )
    return replace(trained, judge=chosen.judge(validated), seconds=time.perf_counter() - started)


def training_steps(corpus: Corpus, settings: Settings) -> int:
    """How many optimiser steps :func:`train` takes: two pairs a training recording, in every epoch."""
    return settings.epochs * -(-2 * len(corpus.splits.train) // settings.batch_size)


def validation_batches(corpus: Corpus, settings: Settings) -> list[Any]:
    """Validation pairs, each under one fixed condition drawn from the training mix."""
    dataset = corpus.evaluation("validation", "clean")
    conditions = list(settings.mix)
    source = random.Random("validation")
    chosen = source.choices(conditions, list(settings.mix.values()), k=len(dataset.pairs))
    out: list[Any] = []
    for condition in conditions:
        part = [pair for pair, own in zip(dataset.pairs, chosen, strict=True) if own == condition]
        if part:
            out += list(PairBatches(dataset.with_pairs(part, {condition: 1.0}), settings.batch_size, shuffle=False))
    return out


def evaluate(
    corpus: Corpus,
    trained: Trained,
    settings: Settings,
    split: str = "test",
    advance: Callable[[int], None] | None = None,
) -> tuple[list[Record], list[PairPrediction]]:
    """Measure a trained method under each of ``settings.conditions``; ``clean`` is the in-distribution reference.

    ``advance`` is called with 1 after each condition.
    """
    corpus = corpus.heard() if find(trained.method).hears else corpus
    records: list[Record] = []
    rows: list[PairPrediction] = []
    reference: Decomposition | None = None
    for condition in sorted(settings.conditions, key=lambda c: c != "clean"):
        dataset = corpus.evaluation(split, condition)
        started = time.perf_counter()
        prediction, order = predict_all(trained, dataset, settings)
        seconds = time.perf_counter() - started
        parts = Decomposition(prediction.total[order], prediction.aleatoric[order], prediction.epistemic[order])
        probs = prediction.probs[order]
        targets = torch.tensor([pair.label for pair in dataset.pairs])
        samples = prediction.num_samples
        names = (trained.method, trained.seed, split, condition)
        record = score(*names, probs, targets, parts, reference=reference, samples=samples, seconds=seconds)
        records.append(replace(record, parameters=trained.parameters))
        if condition == "clean":
            reference = parts
        columns = zip(dataset.pairs, probs.tolist(), *(part.tolist() for part in parts), strict=True)
        for pair, probability, total, aleatoric, epistemic in columns:
            key = f"{pair.language}/{pair.recording_key}"
            row = (*names, key, pair.script_text, pair.label, probability, total, aleatoric, epistemic)
            rows.append(PairPrediction(*row))
        if advance is not None:
            advance(1)
    return records, rows


def predict_all(trained: Trained, dataset: Any, settings: Settings) -> tuple[Prediction, torch.Tensor]:
    """Predict a data set in batches of similar length; ``order`` sorts the result into the data set's order."""
    batches = list(PairBatches(dataset, settings.batch_size, shuffle=False))
    prediction = _predicted(trained, batches, settings, keep=trained.judge is not None)
    index = torch.cat([batch.ids for batch in batches])
    return prediction if trained.judge is None else trained.judge(prediction, batches), index.argsort()


def _predicted(trained: Trained, batches: Sequence[Any], settings: Settings, *, keep: bool) -> Prediction:
    """What a judge sees, of validation pairs and of those at test: as many draws, of one seed, kept for it to scale."""
    samples = settings.samples if trained.samples else 1
    options: dict[str, Any] = {"num_samples": samples, "seed": trained.seed, "return_samples": keep}
    return _to_cpu(predict(trained.model, trained.guide, batches, **options))


def _to_cpu(prediction: Prediction) -> Prediction:
    moved: dict[str, Any] = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in vars(prediction).items()}
    return Prediction(**moved)


def task_description(corpus: Corpus, trained: Trained, settings: Settings) -> dict[str, Any]:
    """What ``bayes-adapters verify`` needs beside the adapter: encoders, and uncertainty seen on validation pairs.

    Raises:
        ConfigError: the method hears for itself, which ``verify`` cannot serve.
    """
    if find(trained.method).hears:
        raise ConfigError(
            f"bayes-adapters verify reads frozen frames, and {trained.method} adapts the speech encoder. Save another "
            "method's adapter for it."
        )
    clean = corpus.evaluation("validation", "clean")
    prediction, order = predict_all(trained, clean, replace(settings, samples=VERIFY_SAMPLES))
    labels = torch.tensor([pair.label for pair in clean.pairs])
    wrong = ~correct(prediction.probs[order], labels)
    quantiles = torch.tensor([0.9, 0.99])
    total, epistemic = prediction.total.quantile(quantiles), prediction.epistemic.quantile(quantiles)
    return {
        "task": "verify_prompts",
        "text_backbone": "sentence-transformers/all-MiniLM-L6-v2",
        "speech_encoder": "openai/whisper-tiny.en",
        "speech_fingerprint": corpus.stores["train"].encoder.fingerprint(),
        "max_seconds": 5.0,
        "frames_per_second": 25,
        "max_tokens": clean.max_tokens,
        "calibration": {"validation_pairs": len(clean.pairs), "samples": VERIFY_SAMPLES},
        "thresholds": {
            "total_q90": float(total[0]),
            "total_q99": float(total[1]),
            "epistemic_q90": float(epistemic[0]),
            "epistemic_q99": float(epistemic[1]),
            "total_risk10": risk_limit(prediction.total[order], wrong, 0.1),
        },
    }
