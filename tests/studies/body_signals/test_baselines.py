"""Baselines on frozen encoders: one modality, late fusion, one probe for all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bayes_adapters.analysis.metrics import auc, nll
from bayes_adapters.errors import ConfigError
from examples.studies.body_signals import adapters
from examples.studies.body_signals.data import MODALITIES
from examples.studies.body_signals.methods import METHODS, BestSingle, Joint, LateFusion, fit, fit_weights
from examples.studies.body_signals.task import Task
from tests.refusals import refuses
from tests.studies.body_signals.parts import SETTINGS


@pytest.mark.parametrize("method", list(METHODS))
def test_a_baseline_answers_from_what_is_present_alone(method: str, task: Task) -> None:
    fitted = fit(method, task, SETTINGS)
    whole = fitted.draws("test", list(MODALITIES))
    assert whole.shape == (1, len(task.signals["test"]))
    assert ((whole >= 0) & (whole <= 1)).all()
    assert auc(whole[0], task.signals["test"].labels) > 0.75
    lost = {
        split: {name: value if name in ("EDA", "BVP") else value * math.nan for name, value in part.items()}
        for split, part in fitted.features.items()
    }
    present = ["BVP", "EDA"]
    without = replace(fitted, features=lost).draws("test", present)
    assert without.isfinite().all()
    assert torch.equal(without, fitted.draws("test", present[::-1]))
    with refuses(ConfigError, ", ".join(MODALITIES)):
        fitted.draws("test", [])
    with refuses(ConfigError, "modality", "'EDAA'", "'EDA'"):
        fitted.draws("test", ["EDAA"])


def test_best_single_is_the_best_on_validation_among_the_present(task: Task) -> None:
    fitted = fit("single-best", task, SETTINGS)
    assert isinstance(fitted, BestSingle)
    labels = task.signals["validation"].labels
    losses = [nll(fitted.probes[n].probs(fitted.features["validation"][n]), labels) for n in fitted.order]
    assert losses == sorted(losses)
    assert set(fitted.order[:2]) == {"EDA", "HR"}  # the made-up data's only effects
    best = fitted.order[0]
    second = fitted.order[1]
    present = [name for name in MODALITIES if name != best]
    own = fitted.probes[second].probs(fitted.features["test"][second])
    assert torch.equal(fitted.draws("test", present)[0], own)


def test_late_fusion_is_a_mixture_over_the_present(task: Task) -> None:
    plain, weighted = fit("late-average", task, SETTINGS), fit("late-weighted", task, SETTINGS)
    assert isinstance(plain, LateFusion)
    assert isinstance(weighted, LateFusion)
    assert weighted.logits is not None
    probs = {name: p.probs(plain.features["test"][name]) for name, p in plain.probes.items()}
    assert torch.allclose(plain.draws("test", ["EDA", "HR"])[0], (probs["EDA"] + probs["HR"]) / 2)
    weights = weighted.logits.softmax(0)
    assert weights.argmax() == list(MODALITIES).index("EDA")
    share = weights[2] / (weights[2] + weights[4])
    mixed = share * probs["EDA"] + (1 - share) * probs["HR"]
    assert torch.allclose(weighted.draws("test", ["EDA", "HR"])[0], mixed)


def test_weights_go_to_the_classifier_that_knows() -> None:
    labels = torch.arange(100) % 2
    probs = torch.stack([torch.full((100,), 0.5), 0.1 + 0.8 * labels, 0.9 - 0.8 * labels])
    weights = fit_weights(probs, labels).softmax(0)
    assert weights[1] > 0.9
    assert weights[1] > weights[0] > weights[2]


def test_the_joint_probe_takes_the_training_mean_of_a_withheld_stream(task: Task) -> None:
    fitted = fit("linear-all", task, SETTINGS)
    assert isinstance(fitted, Joint)
    x = torch.cat([fitted.features["test"][name] for name in MODALITIES], -1).double()
    z = fitted.probe.standardised(x)
    z[:, : 4 * 32], z[:, 5 * 32 :] = 0.0, 0.0  # HR is the last of five, 2 · 16 numbers each
    own = torch.sigmoid(z @ fitted.probe.weight + fitted.probe.bias)
    assert torch.allclose(fitted.draws("test", ["HR"])[0], own)


def test_unknown_method(task: Task) -> None:
    with refuses(ConfigError, "method", "'late-avrage'", "'late-average'"):
        fit("late-avrage", task, SETTINGS)
    with refuses(ConfigError, "method", "'wandr'", "'wander'"):
        adapters.train("wandr", task, 0)
