"""Published methods: what each builds, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bayes_adapters import predict
from bayes_adapters.distributions import base_distribution
from bayes_adapters.sites import Granularity
from bayes_adapters.surgery.pruning import PruneSchedule
from bayes_adapters.surgery.training_free import bayesianise
from examples.studies.meld import methods
from examples.studies.meld.experiment import draws, run, train
from examples.studies.meld.methods import KL_WEIGHTS, METHODS, PRUNE_THRESHOLD, PRUNED, Build
from examples.studies.meld.task import Task
from tests.studies.meld.parts import SETTINGS, backbone

PUBLISHED = {
    "mc-dropout": ("AdapterDropout", "MCDropout"),
    "bayeslora-2025": ("AdapterDropout", "MCDropout"),
    "blob": ("StochasticDown", "MeanField"),
    "tfb": ("LoRA", "Delta"),
    "scalabl": ("DiagonalCore", "MeanField"),
    "bayeslora-2026": ("StochasticFactors", "RankWise"),
}


@pytest.mark.parametrize("name", [*PUBLISHED, PRUNED])
def test_what_a_published_method_is_here(name: str) -> None:
    parts = Build(backbone(), num_data=60, steps=16, rank=3, alpha=5.0, prior_scale=0.7)
    model, guide, training = METHODS[name].build(parts)
    assert (type(model).__name__, type(guide).__name__) == PUBLISHED[name.removesuffix("-pruned")]
    config, options = model.config(), guide.config()
    assert (config["rank"], config["alpha"], model.likelihood.config()["num_classes"]) == (3, 5.0, 3)
    assert {path.rsplit(".", 1)[-1] for path in model.layers} == {"query", "value"}
    assert len(model.layers) == 4
    assert training.random
    assert training.kl_weight == KL_WEIGHTS.get(name, 1.0)
    if model.granularity is Granularity.GLOBAL:
        assert config["num_data"] == 60
        assert name in KL_WEIGHTS
    if name in {"mc-dropout", "bayeslora-2025"}:
        assert config["drop"] == {"mc-dropout": 0.1, "bayeslora-2025": 0.15}[name]
        assert config["granularity"] == "token", "a mask for every token"
    if name == "blob":
        assert (options["parameter"], options["init_scale"], config["flipout"]) == ("root", (0.00125, 0.0025), True)
        (site, *_) = model.sites
        assert float(base_distribution(model.prior.of(site)).stddev.flatten()[0]) == pytest.approx(0.7)
    if name == "scalabl":
        assert (options["positive_mean"], options["init_scale"]) == (True, (0.05 / 2**0.5, 0.05))
    assert (training.on_step is not None) == (name in {"bayeslora-2026", PRUNED})
    if training.on_step is not None:
        assert options["init_log_variance"] == -8.0
        assert training.on_step == PruneSchedule(PRUNE_THRESHOLD, start=8, until=8, min_rank=1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_method_learns_and_a_seed_repeats(task: Task, name: str) -> None:
    settings = replace(SETTINGS, epochs=12, lr=3e-2)
    trained = train(task, name, 0, settings)
    (history,) = trained.histories
    assert min(epoch["val_nll"] for epoch in history) < 0.7 * history[0]["val_nll"]
    found = draws(trained, task, "test", settings)
    right = found.mean(0).argmax(-1) == task.test.targets()
    assert float(right.double().mean()) > 0.8
    short = replace(settings, epochs=1)
    first, again, other = (run(task, name, seed, short)[1] for seed in (1, 1, 2))
    assert first == again
    assert [r[6:] for r in first] != [r[6:] for r in other]


def test_tfb_puts_noise_around_the_trained_lora(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, epochs=4, lr=3e-2)
    calls: list[tuple[Any, int]] = []

    def spy(model: Any, guide: Any, anchors: Any, *, relative_to: str, seed: int) -> Any:
        calls.append((anchors, seed))
        assert relative_to == "loss", "as published"
        return bayesianise(model, guide, anchors, relative_to=relative_to, seed=seed)

    monkeypatch.setattr(methods, "bayesianise", spy)
    ((model, guide, _),) = train(task, "tfb", 5, settings).members
    ((lora, point, _),) = train(task, "lora", 5, settings).members
    assert [(anchors.dataset.utterances, seed) for anchors, seed in calls] == [(task.dev.utterances, 5)]
    assert type(guide).__name__ == "TrainingFree"
    batches = task.batches("test", settings)
    mean = predict(model, guide, batches, mean_only=True).probs
    torch.testing.assert_close(mean, predict(lora, point, batches, num_samples=1).probs, rtol=1e-4, atol=1e-5)
    noisy = predict(model, guide, batches, num_samples=2, return_samples=True).samples
    assert noisy is not None
    assert float((noisy[0] - noisy[1]).abs().max()) > 1e-4
