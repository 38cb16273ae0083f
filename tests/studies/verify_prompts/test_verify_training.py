"""Every method trains on a handful of prompts, a seed repeats, and a run is continued on its own data only."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayes_adapters import Batch, Prediction, predict
from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.errors import ConfigError
from bayes_adapters.reliability import FrameDensity
from examples.studies.verify_prompts import after
from examples.studies.verify_prompts.after import ABSENT, SCALES, Finishing, Judge, Validated, density_alone, widening
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.dataset import MISSING
from examples.studies.verify_prompts.experiment import Trained, predict_all, train, validation_batches
from examples.studies.verify_prompts.methods import DETERMINISTIC, METHODS, Build, build, find
from tests.refusals import refuses
from tests.reliability.parts import cloud, contexts
from tests.studies.verify_prompts.parts import SETTINGS, SIZES

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.filterwarnings("ignore:Every σ_q tried is feasible")  # tfb: after two steps B is close to 0
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.judge is None])
def test_every_method_trains_and_predicts(corpus: Corpus, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(after, "EPOCHS", 1)
    result = train(corpus, method, 0, SETTINGS)
    assert len(result.history) == 1
    assert all(math.isfinite(result.history[0][name]) for name in ("loss", "nll", "kl", "val_nll", "grad_norm"))
    has_kl = method not in DETERMINISTIC | {"mc-dropout", "process-fusion", "tfb"}
    assert (result.history[0]["kl"] > 0.0) == has_kl
    assert getattr(getattr(result.guide, "reliability", None), "missing", 1.0) == 1.0  # withheld audio is trained on
    layers = adapted_layers(result.model.backbone)
    assert len(layers) == (60 if find(method).hears else 12)  # six in each of 6 + 4 blocks; query and value of 6
    assert all(bool(layer.lora_B.abs().max() > 0) for layer in layers.values())
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B.normal_(0.0, 0.3)  # after two steps B is too small for its draws to show
            for path in layer.inter.values():
                path.lora_B.normal_(0.0, 0.3)
    clean = (corpus.heard() if find(method).hears else corpus).evaluation("test", "clean")
    prediction, order = predict_all(result, clean, SETTINGS)
    assert sorted(order.tolist()) == list(range(2 * SIZES["test"]))
    assert prediction.num_samples == (1 if method in DETERMINISTIC else 3)
    assert bool((prediction.epistemic > 1e-6).all()) == (method not in DETERMINISTIC)


def test_a_posterior_over_weights_knows_how_many_pairs_there_are(corpus: Corpus) -> None:
    result = train(corpus, "blob", 0, SETTINGS)
    assert result.model.num_data == 24
    with refuses(ConfigError, "blob", "num_data="):
        build("blob", Build(corpus.backbone(), corpus.frame_width))


def test_a_method_may_bring_its_own_kl_weight(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, kl_weight=0.125)
    assert find("c-lora").kl_weight is None
    assert train(corpus, "c-lora", 0, settings).history[0]["kl_weight"] == 0.125
    assert train(corpus, "blob", 0, settings).history[0]["kl_weight"] == find("blob").kl_weight != 0.125
    monkeypatch.setitem(METHODS, "c-lora", replace(find("c-lora"), kl_weight=0.25))
    assert train(corpus, "c-lora", 0, settings).history[0]["kl_weight"] == 0.25


@pytest.mark.filterwarnings("ignore:Every σ_q tried is feasible")
def test_tfb_is_the_trained_lora_with_noise_around_it(corpus: Corpus) -> None:
    plain, noisy = (train(corpus, method, 0, SETTINGS) for method in ("lora-text", "tfb"))
    assert [h["val_nll"] for h in plain.history] == [h["val_nll"] for h in noisy.history]
    assert (type(noisy.model).__name__, type(noisy.guide).__name__) == ("StochasticDown", "TrainingFree")
    batches = validation_batches(corpus, SETTINGS)
    mean = predict(noisy.model, noisy.guide, batches, mean_only=True).probs
    torch.testing.assert_close(mean, predict(plain.model, plain.guide, batches).probs, rtol=1e-5, atol=1e-6)


def test_a_judge_is_made_on_the_validation_pairs_and_has_the_last_word(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Validated] = []

    def doubts(validated: Validated) -> Judge:
        seen.append(validated)
        return lambda prediction, batches: replace(prediction, total=torch.cat([b.targets for b in batches]))

    monkeypatch.setitem(METHODS, "lora-text", replace(find("lora-text"), judge=doubts))
    result = train(corpus, "lora-text", 0, SETTINGS)
    (validated,) = seen
    assert validated.labels.shape == validated.prediction.probs.shape == (2 * SIZES["validation"],)
    assert validated.density().moments
    dataset = corpus.evaluation("test", "clean")
    prediction, order = predict_all(result, dataset, SETTINGS)
    assert prediction.total[order].tolist() == [pair.label for pair in dataset.pairs]


def test_a_judge_of_a_posterior_sees_as_many_draws_as_there_are_at_test(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Validated] = []

    def keeps(validated: Validated) -> Judge:
        seen.append(validated)
        return lambda prediction, _: prediction

    monkeypatch.setitem(METHODS, "c-lora", replace(find("c-lora"), judge=keeps))
    result = train(corpus, "c-lora", 1, SETTINGS)
    (validated,) = seen
    batches = validation_batches(corpus, SETTINGS)
    expected = predict(result.model, result.guide, batches, num_samples=SETTINGS.samples, seed=1, return_samples=True)
    assert torch.equal(validated.prediction.probs, expected.probs)
    assert torch.equal(validated.prediction.samples, expected.samples)
    other = predict(result.model, result.guide, batches, num_samples=SETTINGS.samples, seed=0)
    assert not torch.equal(validated.prediction.probs, other.probs)
    said, _ = predict_all(result, corpus.evaluation("test", "clean"), SETTINGS)
    assert said.num_samples == len(said.samples) == validated.prediction.num_samples == SETTINGS.samples


def test_the_density_alone_knows_the_frames_and_nothing_else() -> None:
    density = FrameDensity.fit([cloud(400, 0)], [contexts(100, 1)], moments=True)
    answers = Prediction(*torch.rand(4, 6), num_samples=1)
    heard, odd = contexts(3, 2), contexts(2, 3, shift=20.0)
    ids = {"input_ids": torch.ones(3, 2, dtype=torch.long)}
    batches = [Batch(ids, None, {"audio": heard}), Batch(ids, None)[:1]]
    batches.append(Batch(ids, None)[:2]._with(context={"audio": odd}))
    found = density_alone(Validated(answers, torch.zeros(6), lambda: density))(answers, batches)
    assert torch.equal(found.probs, answers.probs)
    assert torch.equal(found.epistemic[:3], density.distance(heard))
    assert float(found.epistemic[3]) == ABSENT
    assert bool((found.total[4:] > 4 * density.limit).all())
    assert torch.equal(found.total, found.epistemic)


def test_a_temperature_of_draws_scales_the_mean_of_their_probabilities() -> None:
    """And each draw alike, whose disagreement then says the epistemic share."""
    labels = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    mean = torch.tensor([0.9, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1])
    draws = torch.stack([mean + 0.08, mean - 0.08])
    answers = Prediction(mean, mean, mean, mean, num_samples=2, samples=draws)
    found = find("caliber-x-fusion-temperature").judge(Validated(answers, labels, FrameDensity))(answers, [])
    torch.testing.assert_close(found.probs, torch.where(mean > 0.5, 0.7, 0.3))
    assert bool(((found.epistemic > 0.0) & (found.epistemic < found.total)).all())


def test_late_fusion_is_scaled_by_the_temperature_of_the_validation_pairs() -> None:
    labels = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    sure = torch.tensor([0.9, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1])  # right in 7 of 10
    zero = torch.zeros(10)
    answers = Prediction(sure, zero, zero, zero, num_samples=1)
    found = find("lora-fusion-temperature").judge(Validated(answers, labels, FrameDensity))
    torch.testing.assert_close(found(answers, []).probs, torch.where(sure > 0.5, 0.7, 0.3))


def test_widening_takes_the_scale_that_fits_the_validation_pairs(corpus: Corpus) -> None:
    result = train(corpus, "caliber-x", 0, SETTINGS)
    with torch.no_grad():
        for layer in adapted_layers(result.model.backbone).values():
            layer.lora_B.normal_(0.0, 0.3)  # after two steps B is too small for a scale to show
    result.guide.reliability.density.limit.fill_(0.0)  # every recording is far
    batches = validation_batches(corpus, SETTINGS)
    run = Finishing([], 0, batches, seed=5, samples=3)
    assert widening(result.model, result.guide, run) == (result.model, result.guide)
    chosen, found = result.guide.reliability.scale, dict[float, float]()
    for scale in SCALES:
        result.guide.reliability.scale = scale
        density = predict(result.model, result.guide, batches, num_samples=3, seed=5).log_density
        found[scale] = -float(density.mean())
    assert len(set(found.values())) == len(SCALES)
    assert chosen == min(found, key=lambda scale: found[scale])


def test_a_seed_repeats_and_another_differs(corpus: Corpus, trained: Trained) -> None:
    again, other = (train(corpus, "caliber-x", seed, replace(SETTINGS, epochs=2)) for seed in (0, 1))
    dataset = corpus.evaluation("test", "clean")
    found = [predict_all(t, dataset, SETTINGS)[0].probs for t in (trained, again, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_only_guides_that_read_frames_weigh_them(corpus: Corpus, trained: Trained) -> None:
    assert trained.guide.reliability.density.components == 2  # clean and white@0; withheld audio has no frames
    assert (trained.guide.reliability.fallback, trained.guide.reliability.scale) == ("widen", 1.0)
    parts = Build(corpus.backbone(), corpus.frame_width)
    _, guide = build("caliber-g", parts)
    assert guide.reliability is None
    with refuses(ConfigError, "method", "'caliber-y'", "'caliber-x'"):
        build("caliber-y", parts)


def test_a_run_is_not_continued_on_other_data(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, "lora-text", 0, SETTINGS, tmp_path)
    assert len(train(corpus, "lora-text", 0, SETTINGS, tmp_path).history) == 1
    changed = replace(SETTINGS, mix={"clean": 0.6, "white@0": 0.2, MISSING: 0.2})
    with refuses(ConfigError, "data.identity.dataset.conditions.clean", 0.5, 0.6):
        train(corpus, "lora-text", 0, changed, tmp_path)
