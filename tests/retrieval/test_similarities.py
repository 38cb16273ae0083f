"""Queries against a gallery: draws held equal for both sides, embeddings apart, pairs scored, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Gaussian, load, predict, save
from bayes_adapters.analysis._checks import require_one_target
from bayes_adapters.analysis.no_match import MatchThreshold, NullCandidate
from bayes_adapters.analysis.saved import load_calibration
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import CrossAttention, Delta, MeanField
from bayes_adapters.heads import BayesianTowers
from bayes_adapters.inference import similarities
from bayes_adapters.likelihoods import Contrastive
from bayes_adapters.models import ConcatLoRA, StochasticCore
from bayes_adapters.surgery.laplace import laplace
from tests.helpers import CONTEXT, bert, fill_B, token_batch
from tests.refusals import refuses
from tests.retrieval.parts import pairs, side, towers
from tests.text_and_audio import encoders

DRAWS = 3


def test_one_draw_is_one_function_of_both_sides() -> None:
    """Sides apart, in other batches, and swapped: the scores of pairs in one pass, draw by draw."""
    model, data = towers(), pairs()
    guide = MeanField(model, init_scale=0.5)
    texts, sounds = side(data, "text"), side(data, "audio")
    found = similarities(model, guide, texts, sounds, num_samples=DRAWS, return_samples=True)
    whole = predict(model, guide, data, num_samples=DRAWS, return_samples=True)
    assert found.samples is not None
    assert whole.samples is not None
    torch.testing.assert_close(found.samples.softmax(-1), whole.samples, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.probs, whole.probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.match.epistemic, whole.epistemic, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.mean, found.samples.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance, found.samples.var(0), rtol=1e-3, atol=1e-4)
    assert float(found.variance.min()) > 0
    cut = [sounds[:2], sounds[2:]], [texts[:4], texts[4:]]
    swapped = similarities(model, guide, *cut, num_samples=DRAWS, return_samples=True)
    assert swapped.samples is not None
    torch.testing.assert_close(swapped.samples.mT, found.samples, rtol=1e-4, atol=1e-4)
    few = similarities(model, guide, texts[:1], sounds, num_samples=DRAWS)
    torch.testing.assert_close(few.mean, found.mean[:1], rtol=1e-4, atol=1e-4)


def test_towers_and_thresholds_survive_a_file(tmp_path: Path) -> None:
    head = BayesianTowers(prior_scale=2.0, init_scale=0.3)
    model = ConcatLoRA(encoders(1, 1), Contrastive(3), rank=2, head=head, num_data=50)
    guide, data = Delta(model), pairs()
    model.likelihood.log_scale.data.fill_(1.0)
    limits = [MatchThreshold(0.25, 0.1), NullCandidate(1.5)]
    save(tmp_path / "a", model, guide, calibration=limits)
    again = load(tmp_path / "a", encoders(1, 1))
    found = [similarities(*both, data, data, num_samples=DRAWS) for both in ((model, guide), again)]
    assert torch.equal(found[0].mean, found[1].mean)
    assert float(found[0].variance.min()) > 0
    assert float(found[0].match.epistemic.min()) > 0
    assert load_calibration(tmp_path / "a") == limits


def test_a_point_is_one_draw() -> None:
    model, data = ConcatLoRA(encoders(1, 1), Contrastive(3), rank=2), pairs()
    found = similarities(model, Delta(model), data, data, return_samples=True)
    assert found.num_samples == 16
    assert found.samples is not None
    assert found.samples.shape == (16, 5, 5)
    assert float(found.variance.max()) == float(found.match.epistemic.max()) == 0.0


def test_pairs_are_scored_where_one_side_conditions_the_other() -> None:
    """CALIBER: each text beside each recording, a Bernoulli's logits; a row is the prediction of that pair."""
    model = fill_B(StochasticCore(bert(1), Bernoulli(), rank=2))
    guide, texts = CrossAttention(model, context_dim=CONTEXT, dim=4), token_batch(4)
    found = similarities(model, guide, texts, texts, of_gallery=["audio"], num_samples=DRAWS, return_samples=True)
    assert found.samples is not None
    heard = replace(texts, context={"audio": texts.context["audio"][torch.tensor([3, 3, 3, 3])]}, index=None)
    heard = replace(heard, index=torch.arange(4) * 4 + 3)  # the pairs' numbers, on which noise depends
    rows = predict(model, guide, heard, num_samples=DRAWS, return_samples=True)
    assert rows.samples is not None
    torch.testing.assert_close(found.samples[..., 3].sigmoid(), rows.samples, rtol=1e-4, atol=1e-6)
    parts = [texts[:3], texts[3:]], [texts[:1], texts[1:]]
    cut = similarities(model, guide, *parts, of_gallery=["audio"], num_samples=DRAWS)
    torch.testing.assert_close(cut.mean, found.mean, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compared() -> None:
    model, data = towers(), pairs()
    guide, texts = MeanField(model), side(pairs(), "text")
    with refuses(DataError, "1", "gallery"):
        similarities(model, guide, texts, side(data, "audio")[:1])
    with refuses(DataError, "gallery", "audio", "text.input_ids"):
        similarities(model, guide, texts, texts)
    absent = torch.tensor([True, False, True, True, True])
    with refuses(DataError, "[1]", "gallery", "audio"):
        similarities(model, guide, texts, Batch({**side(data, "audio").inputs, "audio.present": absent}))
    with refuses(DataError, "queries", "dict"):
        similarities(model, guide, [{}], texts)  # type: ignore[list-item]
    with refuses(DataError, "queries", "no batch"):
        similarities(model, guide, [], texts)
    plain = ConcatLoRA(encoders(1, 1), Gaussian(), rank=2)
    with refuses(ConfigError, "Gaussian", "Contrastive"):
        similarities(plain, Delta(plain), data, data)
    with refuses(ConfigError, "Laplace", "Contrastive", "SWAG"):
        laplace(model, guide, data)
    with refuses(DataError, "to_arviz()", "Contrastive"):
        require_one_target(model.likelihood, model.likelihood.per_token, model.likelihood.compares)
    with refuses(ConfigError, "linearised='outputs'", "Contrastive"):
        predict(model, guide, data, linearised="outputs")
    with refuses(DataError, "1 pair"):
        predict(model, guide, data[:1].without_targets(), num_samples=1)
    with pytest.raises(ConfigError):
        similarities(model, guide, data, data, num_samples=0)
