"""Priors made of other distributions: mixtures, and transformed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal

from bayes_adapters import ELBO, load, predict, save
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.priors import Prior
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch


def mixture(*scales: float) -> Any:
    return dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.75, 0.25])), dist.Normal(torch.zeros(2), torch.tensor(scales))
    )


def transformed() -> Any:
    return dist.TransformedDistribution(
        dist.Laplace(0.0, 1.0), [dist.transforms.AffineTransform(torch.tensor(0.1), torch.tensor(0.3))]
    )


NESTED = {
    "mixture": lambda: mixture(0.05, 0.5),
    "mixture_of_rows": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.Independent(dist.Normal(torch.zeros(2, 3), torch.tensor([[0.1], [1.0]])), 1),
    ),
    "transformed": transformed,
    "independent": lambda: dist.Laplace(torch.zeros(3, 3), 0.2).to_event(1),
    "masked": lambda: dist.Normal(torch.zeros(3, 3), 0.2).mask(torch.eye(3).bool()),
    "student": lambda: dist.StudentT(4.0, 0.0, 0.2),
}


@pytest.mark.parametrize("granularity", ["token", "global"])
@pytest.mark.parametrize("name", list(NESTED))
def test_a_nested_distribution_trains_predicts_is_saved_loaded_and_exported(
    name: str, granularity: str, tmp_path: Path
) -> None:
    model = core_model(granularity, prior=NESTED[name](), num_data=5)
    guide, batch = MeanField(model), token_batch()
    fit(model, guide, [batch], epochs=1, progress=False)
    found = predict(model, guide, batch, num_samples=3)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    families = [{name: e["family"] for name, e in one.prior.to_json().items()} for one in (model, again)]
    assert families[0] == families[1]
    core = torch.randn(3, 3)
    each = NESTED[name]().log_prob(core)
    for one in (model, again):
        value = one.prior.of(one.sites[0]).log_prob(core)
        torch.testing.assert_close(value, each.sum().expand(value.shape))
    assert torch.equal(predict(again, guide_again, batch, num_samples=3).mean, found.mean)
    if granularity == "global":
        lora = to_lora(model, guide, bert())
        exported, mean = predict(lora, Delta(lora), batch), predict(model, guide, batch, mean_only=True)
        torch.testing.assert_close(exported.mean, mean.mean, rtol=1e-4, atol=1e-5)


def test_a_mixture_is_scored_by_its_density_in_the_elbo() -> None:
    """KL(q || mixture) has no closed form: it is the average of log q − log p over draws, here against quadrature."""
    model = core_model("global", rank=1, prior=mixture(0.05, 0.5), num_data=1, targets=["0.attention.self.query"])
    guide = MeanField(model, init_scale=0.2)
    with torch.no_grad():
        guide.loc["core-global"].fill_(0.3)
    grid = torch.linspace(-2, 2, 20001, dtype=torch.float64)
    q, p = Normal(torch.tensor(0.3).double(), 0.2), mixture(0.05, 0.5)
    exact = (q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid.float()).double())).sum() * 2e-4
    torch.manual_seed(0)
    draws = torch.stack([ELBO(model, guide, num_particles=2000).terms(token_batch(1, 2)).kl for _ in range(5)])
    assert draws.mean().item() == pytest.approx(exact.item(), abs=0.03)


def test_tensors_follow_the_model_and_are_not_trained() -> None:
    model = core_model(prior=mixture(0.05, 0.5))
    assert len(list(model.prior.buffers())) > 0
    assert not any(b.requires_grad for b in model.prior.buffers())
    assert not set(dict(model.named_buffers())) & set(model.state_dict()) & {"prior.site0_mixture_distribution_logits"}
    moved = Prior(mixture(0.05, 0.5), model.sites).to(torch.float64)
    found = moved.of(model.sites[0])
    assert found.sample().dtype == torch.float64
    meta = Prior(transformed(), model.sites).to("meta").of(model.sites[0])
    assert meta.log_prob(torch.zeros(3, 3, device="meta")).device.type == "meta"
