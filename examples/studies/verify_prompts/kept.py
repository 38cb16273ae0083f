"""What the demo keeps with its adapter: answers with a promise, and whether a pair belongs together."""

from __future__ import annotations

from dataclasses import replace

import torch

from bayes_adapters import AdapterModel
from bayes_adapters.analysis.conformal import ConformalClasses
from bayes_adapters.analysis.saved import Calibration
from bayes_adapters.analysis.selection import RiskThreshold
from bayes_adapters.reliability import PairDensity, frozen_pairs
from examples.studies.verify_prompts.corpus import Corpus, PairBatches
from examples.studies.verify_prompts.experiment import VERIFY_SAMPLES, Settings, Trained, predict_all

BATCH = 32
FEWEST = 20
"""Pairs that a density is estimated from, and as many held out."""


def fitted(corpus: Corpus, trained: Trained, settings: Settings, *, alpha: float = 0.1) -> list[Calibration]:
    """Return a conformal set and a risk threshold, both at ``alpha``, of the clean validation pairs.

    The epoch that was kept was chosen on these pairs, so they are not quite exchangeable with new ones.
    """
    clean = corpus.evaluation("validation", "clean")
    prediction, order = predict_all(trained, clean, replace(settings, samples=VERIFY_SAMPLES))
    labels = torch.tensor([pair.label for pair in clean.pairs])[order.argsort()]  # as the prediction is
    sets = ConformalClasses.fit(prediction, labels, alpha=alpha)
    return [sets, RiskThreshold.fit(prediction, labels, risk=alpha)]


def features(
    corpus: Corpus, model: AdapterModel, split: str, condition: str = "clean", label: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the frozen features of scripts and recordings of one split's right (1) or wrong (0) pairs."""
    dataset = corpus.evaluation(split, condition)
    sound = "clean" if condition == "hard" else condition  # which says of what kind the wrong scripts are
    chosen = dataset.with_pairs([pair for pair in dataset.pairs if pair.label == label], {sound: 1.0})
    batches = list(PairBatches(chosen, BATCH, shuffle=False))
    inputs, contexts, _ = frozen_pairs(model, batches)
    order = torch.cat([batch.ids for batch in batches]).argsort()
    return inputs.cpu()[order], contexts.cpu()[order]


def pair_densities(corpus: Corpus, model: AdapterModel) -> dict[str, PairDensity]:
    """Return what goes to ``save(…, pair_densities=)``: nothing where a split has too few right pairs for a density."""
    enough = min(len(corpus.splits.train), len(corpus.splits.validation)) >= FEWEST
    return {"audio": pair_density(corpus, model)} if enough else {}


def pair_density(corpus: Corpus, model: AdapterModel, components: int = 40) -> PairDensity:
    """Return the density on right pairs of clean training recordings, held out against those of validation."""
    train, held_out = (features(corpus, model, split) for split in ("train", "validation"))
    most = min(len(train[0]) - 1, train[0].shape[1], train[1].shape[1])
    return PairDensity.fit(*train, *held_out, components=min(components, most))
