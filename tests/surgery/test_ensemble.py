"""Deep ensembles on one backbone: the predictive is the average of the members', exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, Batch, Categorical, Gaussian, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, StoredDraws
from bayes_adapters.models import LoRA, StochasticCore, StochasticDown
from bayes_adapters.surgery._ensemble_checks import require_several
from bayes_adapters.surgery.ensemble import ensemble
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses


def member(seed: int, likelihood: Any = None, **options: Any) -> tuple[Any, Delta]:
    torch.manual_seed(100 + seed)
    model = LoRA(bert(), likelihood or Categorical(3), **{"rank": 2} | options)
    torch.manual_seed(200 + seed)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.normal_(0.0, 0.5)
    return model, Delta(model)


def members(count: int = 3, **options: Any) -> list[tuple[Any, Delta]]:
    return [member(seed, **options) for seed in range(count)]


def batch() -> Batch:
    made = token_batch(5)
    return Batch(made.inputs, torch.arange(5) % 3)


def test_the_predictive_is_the_members_average() -> None:
    every, data = members(), batch()
    model, guide = ensemble(every)
    alone = [predict(m, g, data) for m, g in every]
    mean = torch.stack([one.mean for one in alone]).mean(0)
    for samples in (3, 6):
        found = predict(model, guide, data, num_samples=samples, return_samples=True)
        torch.testing.assert_close(found.mean, mean)
        torch.testing.assert_close(found.aleatoric, torch.stack([one.total for one in alone]).mean(0))
        density = torch.stack([one.log_density for one in alone]).logsumexp(0) - torch.tensor(3.0).log()
        torch.testing.assert_close(found.log_density, density)
    assert found.epistemic.min() > 1e-4
    two = predict(model, guide, data, num_samples=2, return_samples=True).samples
    assert not torch.allclose(two[0], two[1]), "fewer draws than members are different members"
    cut = predict(model, guide, [data[:2], data[2:]], num_samples=3, chunk_size=1)
    torch.testing.assert_close(cut.mean, mean)
    loose = predict(model, guide, data, num_samples=40, seed=None, return_samples=True).samples
    assert 2 <= len(loose[:, 0].round(decimals=4).unique(dim=0)) <= 3
    assert ELBO(model, guide)(data).isfinite()


def test_a_member_is_drawn_whole_adapters_and_head() -> None:
    """Each draw equals one member's answers; a mixture of factors and heads of several would equal none."""
    every, data = members(), batch()
    model, guide = ensemble(every)
    drawn = predict(model, guide, data, num_samples=3, return_samples=True).samples
    alone = torch.stack([predict(m, g, data).mean for m, g in every])
    nearest = [int((alone - one).abs().amax((1, 2)).argmin()) for one in drawn]
    assert sorted(nearest) == [0, 1, 2]
    torch.testing.assert_close(drawn, alone[nearest])


def test_the_frozen_weights_are_there_once() -> None:
    every = members()
    before = predict(*every[0], batch()).mean
    model, _ = ensemble(every)
    ours, theirs = (m.backbone.get_parameter("embeddings.word_embeddings.weight") for m in (model, every[0][0]))
    assert ours.data_ptr() == theirs.data_ptr()
    assert torch.equal(predict(*every[0], batch()).mean, before)


def test_cores_are_taken_into_their_factors() -> None:
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = StochasticCore(bert(), Categorical(3), rank=2, granularity="global", num_data=5)
        with torch.no_grad():
            for parameter in model.trainable_parameters().values():
                parameter.normal_(0.0, 0.5)
        made.append((model, Delta(model)))
    model, guide = ensemble(made, weights="factors")
    mean = (predict(*made[0], batch()).mean + predict(*made[1], batch()).mean) / 2
    torch.testing.assert_close(predict(model, guide, batch(), num_samples=2).mean, mean)


def test_sites_of_one_model_are_members_too() -> None:
    model = core_model("global", rank=2, num_data=5)
    points = [Delta(model) for _ in range(3)]  # each starts at another draw
    same, guide = ensemble([(model, point) for point in points])
    mean = torch.stack([predict(model, point, token_batch()).mean for point in points]).mean(0)
    assert same is model
    torch.testing.assert_close(predict(model, guide, token_batch(), num_samples=3).mean, mean)


def test_parameters_of_the_likelihood_are_averaged() -> None:
    every = members(2, likelihood=Gaussian())
    model, _ = ensemble(every)
    mean = torch.stack([m.likelihood.log_scale for m, _ in every]).mean(0)
    torch.testing.assert_close(model.likelihood.log_scale, mean)


def test_save_and_load(tmp_path: Path) -> None:
    model, guide = ensemble(members())
    save(tmp_path / "adapter", model, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert isinstance(guide_again, StoredDraws)
    found, expected = (predict(*pair, batch(), num_samples=3).mean for pair in ((again, guide_again), (model, guide)))
    assert torch.equal(found, expected)


def other_backbone() -> tuple[Any, Delta]:
    model = LoRA(bert(seed=7), Categorical(3), rank=2)
    return model, Delta(model)


@pytest.mark.parametrize(
    ("second", "facts"),
    [
        (lambda: member(1, rank=3), ("rank 3",)),
        (lambda: member(1, likelihood=Categorical(4)), ("Member 1", "differs")),
        (lambda: member(1, alpha=8.0), ("alpha 8",)),
        (other_backbone, ("another backbone",)),
    ],
)
def test_members_have_one_shape(second: Any, facts: tuple[str, ...]) -> None:
    with refuses(ConfigError, *facts):
        ensemble([member(0), second()])


def test_what_it_refuses() -> None:
    with refuses(ConfigError, "two or more", "1 member"):
        ensemble([member(0)])
    with refuses(ConfigError, "a list among them", "(model, guide)"):
        require_several([member(0), list(member(1))])
    with refuses(ConfigError, "a generator", "list("):
        require_several(pair for pair in members(2))
    cores = [core_model("global", rank=2, num_data=5) for _ in range(2)]
    with torch.no_grad():
        cores[1].head.weight.add_(1.0)
    with refuses(ConfigError, "head.weight", "weights='factors'"):
        ensemble([(model, Delta(model)) for model in cores])
    down = StochasticDown(bert(), cores[0].likelihood, rank=2, num_data=5)
    with refuses(ConfigError, "A.global", "core.global", "weights='factors'"):
        ensemble([(cores[0], Delta(cores[0])), (down, Delta(down))])
