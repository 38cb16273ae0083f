"""PoLAR with a variational last layer, by its name: orthonormal in every step, and one pass answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, Categorical, load, predict, save
from bayes_adapters.cli import main
from bayes_adapters.files import describe
from bayes_adapters.files._card import card
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models.polar import stable_rank
from bayes_adapters.systems import build
from bayes_adapters.training import fit
from tests.helpers import bert, token_batch

N = 20
TARGETS = torch.tensor([0, 2, 1, 1, 0])


def system(likelihood: Likelihood | None = None, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return build("polar-vbll", bert(), likelihood or Categorical(3), num_data=N, rank=3, **options)


def widened(model: Any, guide: Any) -> None:
    """Let the adapters do something, and the head's posterior be wide."""
    with torch.no_grad():
        for value in guide.loc.values():
            value.normal_()
        guide.head_posterior.weight.log_scale.add_(2.0)


def test_directions_are_orthonormal_in_every_step_and_stable_ranks_are_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, guide = system()
    batch = token_batch(targets=TARGETS)
    before = {name: value.detach().clone() for name, value in model.named_parameters() if "lora" in name}
    ranks: list[float] = []

    def on_step(step: int, *_: object) -> None:
        for layer in model.installed.values():
            down, up = layer.directions()
            torch.testing.assert_close(down @ down.T, torch.eye(3), rtol=0, atol=1e-5)
            torch.testing.assert_close(up.T @ up, torch.eye(3), rtol=0, atol=1e-5)
        ranks.append(float(torch.stack([stable_rank(core) for core in guide.loc["core-global"].detach()]).mean()))

    first = ELBO(model, guide).terms(batch, with_scales=True).log()["stable_rank"]
    result = fit(model, guide, batch, max_steps=4, log_every=1, on_step=on_step, progress=False)
    assert all(not torch.equal(dict(model.named_parameters())[name], value) for name, value in before.items())
    logged = [row["stable_rank"] for row in result.history]
    assert logged == pytest.approx([first, *ranks[:-1]], rel=1e-5)  # that of the core before the step
    assert 1 <= ranks[-1] <= 3
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)
    assert main(["show", str(tmp_path)]) == 0
    assert "predictive=probit" in next(line for line in capsys.readouterr().out.splitlines() if line[:5] == "head ")
    row = next(line for line in card(describe(tmp_path), "a/b").splitlines() if line.startswith("| head | `vbll`"))
    assert 'predictive="probit"' in row


def test_nothing_is_drawn_and_every_number_of_draws_answers_the_same_from_one_pass() -> None:
    model, guide = system()
    widened(model, guide)
    batch = token_batch(targets=TARGETS)
    elbo = ELBO(model, guide)
    assert torch.equal(elbo(batch), elbo(batch))
    rows: list[int] = []
    handle = model.backbone.register_forward_hook(lambda *args: rows.append(len(args[2].last_hidden_state)))
    many, one = (predict(model, guide, batch, num_samples=n, seed=n) for n in (32, 1))
    assert rows == [5, 5]
    handle.remove()
    assert torch.equal(many.mean, one.mean)
    assert not many.epistemic.any()
    assert not torch.allclose(many.mean, predict(model, guide, batch, mean_only=True).mean, atol=1e-2)


@pytest.mark.parametrize(("likelihood", "error"), [(Bernoulli(), 0.02), (Categorical(3), 0.04)], ids=["one", "three"])
def test_the_probit_answer_is_close_to_that_of_many_draws(likelihood: Likelihood, error: float) -> None:
    model, guide = system(likelihood)
    widened(model, guide)
    batch = token_batch().without_targets()
    found = predict(model, guide, batch).mean
    drawing, guide_drawing = system(likelihood, head=VariationalLastLayer("dense"))
    drawing.load_state_dict(model.state_dict())
    guide_drawing.load_state_dict(guide.state_dict())
    draws = predict(drawing, guide_drawing, batch, num_samples=4000)
    assert bool((draws.epistemic > 1e-3).all())
    point = predict(drawing, guide_drawing, batch, mean_only=True).mean
    assert float((found - draws.mean).abs().max()) < error
    assert float((found - draws.mean).abs().max()) < 0.5 * float((point - draws.mean).abs().max())


def test_options_reach_structure_and_head() -> None:
    model, guide = system(pooling="cls", alpha=6.0)
    assert (model.head.name, model.head.covariance, model.head.predictive) == ("vbll", "dense", "probit")
    assert (model.pooling, model.alpha, model.rank) == ("cls", 6.0, 3)
    assert system()[0].head is not model.head
    model, _ = system(head=VariationalLastLayer("diagonal"))
    assert model.head.predictive == "draws"
    assert math.isclose(guide.recipe.kl_weight, 1.0)
