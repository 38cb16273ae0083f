"""Draws of weights with draws of local latents in each: the split against entropies by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.special import entr

from bayes_adapters import Batch, Bernoulli, Categorical, Gaussian, predict
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.marginal import Marginal
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.heads import GaussianProcessHead, VariationalLastLayer
from bayes_adapters.inference.handlers import keyed_uniform
from bayes_adapters.likelihoods import Tasks
from bayes_adapters.models import StochasticCore
from bayes_adapters.priors import GlobalWeights
from bayes_adapters.reliability.blending import blend
from tests.helpers import Linear, bert, core_model, fill_B, token_batch
from tests.refusals import refuses

WEIGHTS, LOCAL, EXAMPLES = 3, 4, 4
DRAWS = {"num_samples": WEIGHTS, "local_samples": LOCAL}


def case(likelihood: Any) -> tuple[StochasticCore, Contextual, Batch]:
    torch.manual_seed(2)
    options: dict[str, Any] = {"targets": ["query"], "granularity": "sequence", "rank": 1, "num_data": 9}
    model = fill_B(StochasticCore(Linear(), likelihood, prior=GlobalWeights(1.0, 0.5), **options))
    guide = Contextual(model, width=3)
    with torch.no_grad():
        model.head.weight.normal_()
        guide.hyper.log_scale["weight-core-query"].fill_(-0.5)
    return model, guide, Batch({"x": torch.randn(EXAMPLES, 2, 4)})


def outputs(model: StochasticCore, guide: Contextual, batch: Batch) -> Tensor:
    """The head's outputs of every draw, shape (S, K, B, outputs), from the hash of the draws' numbers alone."""
    x, layer = batch.inputs["x"], model.backbone.query
    rows = batch.ids

    def noise(site: str, count: int, examples: Tensor) -> Tensor:
        return torch.special.ndtri(keyed_uniform(0, site, torch.arange(count), examples, 1, x.device)[..., 0])

    with torch.no_grad():
        key = "weight-core-query"
        spread = guide.hyper.log_scale[key].exp().flatten()
        weight = guide.hyper.loc[key].flatten() + spread * noise("weight.core.query", WEIGHTS, rows[:1] * 0)
        z = (x @ layer.lora_A.T).mean(1)
        offset, g = guide.heads["core-query"].net(z).unbind(-1)
        local = offset + g.sigmoid().square() * noise("core.query", LOCAL, rows)
        core = weight[:, None] + local  # (S, 1) and (K, B): every weight sees the same local noise
        update = 16.0 * core.reshape(WEIGHTS, LOCAL, EXAMPLES, 1) * (z @ layer.lora_B.T)
        return model.head(layer.base_layer(x).mean(1) + update)


def test_split_of_classes_is_that_of_entropies_by_hand() -> None:
    model, guide, batch = case(Categorical(3))
    found = predict(model, guide, batch, return_samples=True, **DRAWS)
    p = outputs(model, guide, batch).double().softmax(-1)
    given = p.mean(1)  # of each weight
    total, of_weight, of_draw = (entr(q).sum(-1) for q in (given.mean(0), given, p))
    by_hand = {
        "mean": given.mean(0),
        "total": total,
        "epistemic": total - of_weight.mean(0),
        "aleatoric": of_weight.mean(0),
        "local": (of_weight - of_draw.mean(1)).mean(0),
        "samples": given,
    }
    for name, value in by_hand.items():
        torch.testing.assert_close(getattr(found, name), value.float(), rtol=1e-4, atol=1e-6, msg=name)
    assert found.num_samples == WEIGHTS
    assert (found.local > 1e-3).all()
    assert (found.epistemic > 1e-3).all()


def test_split_of_numbers_is_the_law_of_total_variance() -> None:
    model, guide, batch = case(Gaussian(-1.0))
    found = predict(model, guide, batch, **DRAWS)
    f = outputs(model, guide, batch)[..., 0].double()
    noise = torch.tensor(-2.0).exp()
    torch.testing.assert_close(found.epistemic_variance, f.mean(1).var(0).float(), rtol=1e-4, atol=1e-6)
    aleatoric = noise + f.var(1, unbiased=False).mean(0)
    torch.testing.assert_close(found.aleatoric_variance, aleatoric.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.variance, (noise + f.flatten(0, 1).var(0, unbiased=False)).float())
    both = 0.5 * (found.aleatoric_variance + found.epistemic_variance).log()
    torch.testing.assert_close(found.epistemic_corrected - found.epistemic, both - 0.5 * found.variance.log())


def test_weights_without_spread_leave_nothing_open_and_local_is_what_draws_disagreed_by() -> None:
    """Exactly, at any K: C-LoRA has no weights, so that all its disagreement is local."""
    model, batch = core_model(), token_batch(targets=torch.ones(5))
    guide = Contextual(model)
    found = predict(model, guide, batch, num_samples=3, local_samples=LOCAL)
    before = predict(model, guide, batch, num_samples=LOCAL)
    assert not found.epistemic.any()
    torch.testing.assert_close(found.local, before.epistemic, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.mean, before.mean)
    torch.testing.assert_close(found.log_density, before.log_density)
    assert before.local is None


def test_neither_batches_nor_chunks_change_a_number() -> None:
    model = core_model(prior=GlobalWeights())
    guide, batch = Contextual(model), token_batch()
    whole = predict(model, guide, batch, **DRAWS)
    cut = predict(model, guide, [batch[:2], batch[2:]], chunk_size=2, **DRAWS)
    for name in ("mean", "total", "epistemic", "local"):
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name), rtol=1e-4, atol=1e-6)


def test_tasks_are_split_one_by_one() -> None:
    likelihood = Tasks({"class": Bernoulli(), "number": Gaussian()})
    model = core_model(likelihood=likelihood, prior=GlobalWeights())
    batch = token_batch().without_targets()
    found = predict(model, Contextual(model), [batch[:2], batch[2:]], **DRAWS)
    for name in ("total", "epistemic", "aleatoric", "local"):
        tasks = sum(getattr(task, name) for task in found.tasks.values())
        torch.testing.assert_close(getattr(found, name), tasks, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)


def test_what_is_done_to_a_prediction_afterwards_leaves_no_stale_part() -> None:
    model, guide, batch = case(Categorical(3))
    found = predict(model, guide, batch, **DRAWS)
    assert TemperatureScaling(2.0)(found).local is None
    gamma = torch.tensor([1.0, 0.5, 0.0, 0.2])
    blended = blend(found, gamma, Marginal(torch.full((3,), 1 / 3, dtype=torch.float64)))
    torch.testing.assert_close(blended.local, gamma * found.local)
    torch.testing.assert_close(blended.total, blended.aleatoric + blended.epistemic)
    assert (blended.local <= blended.aleatoric).all()


@pytest.mark.parametrize("option", [{"mean_only": True}, {"seed": None}, {"linearised": True}])
def test_options_that_have_no_keyed_draws(option: dict[str, Any]) -> None:
    model = core_model(prior=GlobalWeights())
    with refuses(ConfigError, "local_samples"):
        predict(model, Contextual(model), token_batch(), local_samples=2, **option)


def test_the_values_of_a_random_function_are_of_the_weights() -> None:
    """A Gaussian process at an example, given its inducing values: no local latent, however many K there are."""
    model = core_model(likelihood=Gaussian(), head=GaussianProcessHead(), num_data=9, backbone=bert(1))
    guide, batch = Contextual(model, scale=None), token_batch().without_targets()
    found = predict(model, guide, batch, num_samples=3, local_samples=2)
    assert not found.local.any()
    torch.testing.assert_close(found.epistemic, predict(model, guide, batch, num_samples=3).epistemic)


def test_other_refusals() -> None:
    model = core_model("global")
    with refuses(ConfigError, "local_samples", "granularity='token'"):
        predict(model, MeanField(model), token_batch(), local_samples=2)
    with refuses(ConfigError, "local_samples", "dict"):
        predict(model, {"core.global": torch.zeros(3, *model.sites[0].shape)}, token_batch(), local_samples=2)
    head = StochasticCore(bert(1), Gaussian(), head=VariationalLastLayer(), num_data=9, rank=2)
    with refuses(ConfigError, "integrated out", "BayesianLinear"):
        predict(head, Contextual(head), token_batch(), local_samples=2)
