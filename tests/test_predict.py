"""Posterior-predictive sampling: repeatable, independent of how the data is cut up, and honest about its parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import (
    Batch,
    Bernoulli,
    Categorical,
    Frames,
    Gaussian,
    HeteroscedasticGaussian,
    Prediction,
    adapted_layers,
    evaluating,
    predict,
)
from bayes_adapters.analysis.metrics import auroc
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.models import LoRA, StochasticCore
from tests.helpers import CASES, CONTEXT, GUIDES, VOCAB, bert, core_model, fill_B, llama, pad, token_batch
from tests.information import of_draws
from tests.refusals import refuses


def same(a: Prediction, b: Prediction, rows: Tensor | slice = slice(None)) -> None:
    for name in ("mean", "total", "aleatoric", "epistemic", "log_density", "variance"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            torch.testing.assert_close(x, y[rows], rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("granularity", "name"), CASES)
def test_independent_of_batch_size_chunks_padding_and_order(granularity: str, name: str) -> None:
    model = core_model(granularity)
    guide, batch = GUIDES[name](model), token_batch()
    reference = predict(model, guide, batch, num_samples=6)
    same(predict(model, guide, batch, num_samples=6, chunk_size=4), reference)
    same(predict(model, guide, [batch[:2], batch[2:]], num_samples=6, chunk_size=1), reference)
    same(predict(model, guide, pad(batch, 5, frames=3), num_samples=6), reference)
    order = torch.tensor([3, 0, 4, 1, 2])
    same(predict(model, guide, batch[order], num_samples=6), reference, order)


def test_batches_without_index_are_numbered_consecutively() -> None:
    model = core_model()
    guide, batch = Contextual(model), token_batch()
    bare = [Batch(b.inputs, b.targets, b.context) for b in (batch[:2], batch[2:])]
    same(predict(model, guide, bare), predict(model, guide, batch))


def test_left_padding_changes_nothing_where_positions_are_relative() -> None:
    model = fill_B(StochasticCore(llama(), Bernoulli(), targets=["q_proj", "v_proj"], rank=2, pooling="last"))  # type: ignore[arg-type]
    guide = Contextual(model)
    ids = torch.randint(0, VOCAB, (2, 5))
    ones = torch.ones(2, 5, dtype=torch.long)
    plain = Batch({"input_ids": ids, "attention_mask": ones})
    left = Batch(
        {
            "input_ids": torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1),
            "attention_mask": torch.cat([0 * ones[:, :3], ones], 1),
        }
    )
    reference = predict(model, guide, plain, num_samples=5)
    assert reference.epistemic.max() > 1e-6
    same(predict(model, guide, left, num_samples=5), reference)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Categorical(3), Gaussian(), HeteroscedasticGaussian()], ids=lambda x: type(x).__name__
)
def test_the_split_is_that_of_the_draws_and_samples_average_to_the_mean(
    likelihood: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = core_model(likelihood=likelihood)
    guide, batch = MeanField(model, init_scale=1.0), token_batch().without_targets()
    found = predict(model, guide, batch, num_samples=8, return_samples=True, chunk_size=3)
    drawn: list[Any] = []
    summarise = likelihood.summarise
    monkeypatch.setattr(likelihood, "summarise", lambda fn: (drawn.append(fn), summarise(fn))[1])
    predict(model, guide, batch, num_samples=8, chunk_size=8)
    (fn,) = drawn
    for part, expected in of_draws(fn)._asdict().items():
        torch.testing.assert_close(getattr(found, part).double(), expected, rtol=1e-4, atol=1e-6)
    assert found.samples is not None
    assert found.samples.shape[:2] == (8, 5)
    torch.testing.assert_close(found.samples.mean(0), found.mean, rtol=1e-5, atol=1e-6)
    assert (found.epistemic > 0).all()
    assert found.log_density is None
    assert found.num_samples == 8
    joined = predict(model, guide, [batch[:3], batch[3:]], num_samples=8, return_samples=True)
    torch.testing.assert_close(joined.samples, found.samples, rtol=1e-4, atol=1e-6)


def test_against_stock_averaging_of_its_own_samples() -> None:
    """The split of uncertainty from the draws, written out again."""
    model = core_model()
    guide, batch = MeanField(model, init_scale=1.0), token_batch()
    found = predict(model, guide, batch, num_samples=7, return_samples=True)
    p = found.samples.double()

    def entropy(q: Tensor) -> Tensor:
        return -(q * q.log() + (1 - q) * (1 - q).log())

    torch.testing.assert_close(found.total.double(), entropy(p.mean(0)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.aleatoric.double(), entropy(p).mean(0), rtol=1e-5, atol=1e-6)
    y = batch.targets.double()
    density = (p * y + (1 - p) * (1 - y)).mean(0).log()
    torch.testing.assert_close(found.log_density.double(), density, rtol=1e-5, atol=1e-6)


def test_no_spread_means_no_epistemic_uncertainty() -> None:
    model = core_model()
    guide, batch = CrossAttention(model, context_dim=CONTEXT, dim=4, scale="softplus"), token_batch()
    with torch.no_grad():
        for head in guide.heads.values():
            head.net[2].weight[9:] = 0
            head.net[2].bias[9:] = -100.0
    found = predict(model, guide, batch, num_samples=5, return_samples=True)
    assert (found.samples - found.samples[0]).abs().max() < 1e-4
    assert found.epistemic.max() < 1e-6
    same(predict(model, guide, batch, mean_only=True), found)


@pytest.mark.parametrize("granularity", ["token", "sequence", "global"])
def test_zero_B_is_the_frozen_backbone_and_has_no_epistemic_uncertainty(granularity: str) -> None:
    model = core_model(granularity)
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.zero_()
    guide, batch = MeanField(model), token_batch()
    found = predict(model, guide, batch, num_samples=5, return_samples=True)
    with torch.no_grad(), model.adapters_disabled():
        hidden = model.backbone(**batch.inputs).last_hidden_state
    mask = batch.inputs["attention_mask"][..., None]
    base = torch.sigmoid(model.head((hidden * mask).sum(1) / mask.sum(1)))[:, 0]
    assert found.samples.var(0).max() < 1e-12
    torch.testing.assert_close(found.mean, base)
    assert found.epistemic.max() < 1e-6


def test_mean_only_is_one_pass_at_the_posterior_mean() -> None:
    model = core_model("global")
    guide, batch = MeanField(model, init_scale=1.0), token_batch()
    found = predict(model, guide, batch, mean_only=True, num_samples=9)
    assert found.num_samples == 1
    assert found.epistemic.max() < 1e-6
    with torch.no_grad():
        guide.rho["core-global"].fill_(-40.0)
    same(found, predict(model, guide, batch, num_samples=2))


def test_one_draw_of_a_global_core_is_one_function_for_all_inputs() -> None:
    """Five copies of one example: with a global core each draw treats them alike, with local cores it does not."""
    alike = token_batch()[torch.tensor([1, 1, 1, 1, 1])]
    alike = Batch(alike.inputs, None, alike.context)
    spread = {}
    for granularity in ("global", "sequence", "token"):
        model = core_model(granularity)
        found = predict(model, MeanField(model, init_scale=1.0), alike, num_samples=6, return_samples=True)
        assert found.samples.std(0).min() > 1e-3, "draws must differ"
        spread[granularity] = found.samples.std(1).max().item()
    assert spread["global"] < 1e-6
    assert min(spread["sequence"], spread["token"]) > 1e-3


def test_more_samples_extend_the_same_draws() -> None:
    model = core_model()
    guide, batch = Contextual(model), token_batch()
    few, many = (predict(model, guide, batch, num_samples=n, return_samples=True).samples for n in (3, 6))
    torch.testing.assert_close(few, many[:3], rtol=1e-5, atol=1e-6)
    other = predict(model, guide, batch, num_samples=3, return_samples=True, seed=1).samples
    assert (few - other).abs().max() > 1e-4


def test_leaves_modes_generator_gradients_and_trace_as_they_were() -> None:
    model = core_model(dropout=0.5)
    guide = Contextual(model)
    model.train()
    model.backbone.encoder.layer[0].eval()
    guide.train()
    next(iter(guide.heads.values())).eval()
    before = [m.training for m in [*model.modules(), *guide.modules()]]
    assert True in before
    assert False in before
    state = torch.get_rng_state()
    a = predict(model, guide, token_batch(), num_samples=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in [*model.modules(), *guide.modules()]] == before
    assert len(guide.trace.nodes) == 0
    assert all(p.grad is None for p in model.parameters())
    assert not a.mean.requires_grad
    same(a, predict(model.eval(), guide.eval(), token_batch(), num_samples=3))


def test_modes_are_restored_after_an_error() -> None:
    model = core_model()
    model.train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / int(model.training)
    assert model.training


def test_seed_none_uses_torchs_generator() -> None:
    model = core_model()
    guide, batch = Contextual(model), token_batch()
    torch.manual_seed(9)
    a = predict(model, guide, batch, seed=None)
    b = predict(model, guide, batch, seed=None)
    torch.manual_seed(9)
    same(predict(model, guide, batch, seed=None), a)
    assert (a.mean - b.mean).abs().max() > 1e-6


def test_errors() -> None:
    model, other = core_model(), core_model()
    guide, batch = Contextual(model), token_batch()
    with refuses(ConfigError, "Contextual", "StochasticCore"):
        predict(other, guide, batch)
    for options in ({"num_samples": 0}, {"chunk_size": 0}):
        with refuses(ConfigError, *options, 1, 0):
            predict(model, guide, batch, **options)
    with refuses(DataError, "batch"):
        predict(model, guide, [])
    with refuses(ConfigError, "pyro.plate(name, S, dim=-2)"), KeyedDraws(0, torch.arange(2), torch.arange(5)):
        guide(batch)


def test_delta_guides_need_no_noise() -> None:
    model = core_model("global")
    found = predict(model, Delta(model), token_batch(), num_samples=3, return_samples=True)
    assert (found.samples - found.samples[0]).abs().max() < 1e-6


def test_frames_of_half_precision() -> None:
    model = core_model()
    guide, batch = CrossAttention(model, context_dim=CONTEXT, dim=4), token_batch()
    frames = batch.context["audio"]
    reference = predict(model, guide, batch)
    for dtype in (torch.float16, torch.bfloat16):
        half = Batch(batch.inputs, batch.targets, {"audio": Frames(frames.values.to(dtype), frames.mask)})
        torch.testing.assert_close(predict(model, guide, half).mean, reference.mean, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), Categorical(3), Gaussian(-2.0), HeteroscedasticGaussian()],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("draws", [1, 5])
def test_without_anything_random_the_epistemic_part_is_exactly_zero(likelihood: Any, draws: int) -> None:
    """Rounding would rank the examples: an AUROC of what should be level must be one half."""
    model = LoRA(bert(), likelihood)
    with torch.no_grad():
        model.head.weight.mul_(20)
    data = token_batch(200).without_targets()
    found = predict(model, Delta(model), data, num_samples=draws)
    assert not found.epistemic.any()
    assert torch.equal(found.total, found.aleatoric)
    assert auroc(found.epistemic, torch.arange(200) % 2) == 0.5


def test_threads_may_predict_side_by_side() -> None:
    """Pyro has one stack of handlers for all threads."""
    model = core_model()
    guide, batch = Contextual(model), token_batch()
    expected = predict(model, guide, batch, num_samples=3).probs
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: predict(model, guide, batch, num_samples=3).probs, range(40)))
    assert all(torch.equal(probs, expected) for probs in found)
