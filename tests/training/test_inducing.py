"""Inducing points of a Gaussian process start at the centres of the features, and q at its prior."""

from __future__ import annotations

import torch

from bayes_adapters import ELBO, Batch, Categorical, Gaussian, predict
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.heads.gaussian_process import GaussianProcessHead
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.training import fit
from bayes_adapters.training.inducing import initialise
from tests.heads.parts import on_points, scattered
from tests.helpers import bert, fill_B, token_batch
from tests.refusals import refuses


def clusters() -> torch.Tensor:
    """Four tight clusters at the corners of a square of side 10."""
    corners = torch.tensor([[0.0, 0.0], [0.0, 10.0], [10.0, 0.0], [10.0, 10.0]])
    return (corners[:, None] + 0.1 * torch.randn(4, 25, 2)).flatten(0, 1)[torch.randperm(100)]


def test_points_are_at_the_centres_and_the_length_scale_is_the_median_distance() -> None:
    x = clusters()
    model = on_points(x, Gaussian(), 4)
    guide = scattered(Delta(model))
    state = torch.get_rng_state()
    initialise(model, guide, [Batch({"x": x[:30]}), Batch({"x": x[30:]})])
    assert torch.equal(state, torch.get_rng_state())
    found = model.head.inducing_points.detach()
    order = (found / 10).round() @ torch.tensor([2.0, 1.0])
    corners = (x / 10).round() @ torch.tensor([2.0, 1.0])
    expected = torch.stack([x[corners == k].mean(0) for k in range(4)])
    torch.testing.assert_close(found[order.argsort()], expected)
    lengthscale = model.head.kernel.base_kernel.lengthscale
    torch.testing.assert_close(lengthscale.flatten(), torch.pdist(x).median().reshape(1), rtol=1e-4, atol=0.0)
    zeros = ELBO(model, guide).terms(Batch({"x": x}, torch.zeros(100))).kl
    assert abs(zeros.item()) < 1e-6, "q is the prior"


def test_as_many_points_as_examples_are_the_examples() -> None:
    x = torch.randn(6, 2)
    model = on_points(x, Gaussian(), 6, ard=True)
    initialise(model, Delta(model), Batch({"x": x}))
    torch.testing.assert_close(torch.cdist(x, model.head.inducing_points.detach()).amin(1), torch.zeros(6))


def test_features_are_those_of_the_posterior_mean_whatever_the_batches() -> None:
    """And the same whatever torch's generator says; what is frozen is set, and stays frozen."""
    head = GaussianProcessHead(3)
    model = fill_B(StochasticCore(bert(), Categorical(3), head=head, num_data=5, rank=2, granularity="global"))
    guide, batch = MeanField(model), token_batch()
    head.inducing_points.requires_grad_(False)
    points = []
    for data in (batch, [batch[:2], batch[2:]]):
        torch.rand(3)
        initialise(model, guide, data, seed=4)
        points.append(head.inducing_points.clone())
    torch.testing.assert_close(points[0], points[1])
    assert not head.inducing_points.requires_grad
    assert model.training


def test_training_from_there_learns() -> None:
    x = clusters()
    y = ((x / 10).round().sum(1) % 2).long()
    model = on_points(x, Categorical(2), 4)
    guide, batch = Delta(model), Batch({"x": x}, y)
    initialise(model, guide, batch)
    fit(model, guide, batch, epochs=50, optimizer=lambda p: torch.optim.Adam(p, lr=0.1), progress=False)
    assert (predict(model, guide, batch).mean.argmax(1) == y).all()


def test_mistakes() -> None:
    x = torch.randn(5, 2).repeat(3, 1)
    model = on_points(x, Gaussian(), 6)
    with refuses(ConfigError, "num_inducing=6", 5, 15, "GaussianProcessHead(5)"):
        initialise(model, Delta(model), Batch({"x": x}))
    with refuses(DataError, "no batch"):
        initialise(model, Delta(model), [])
    plain = LoRA(bert(), Gaussian())
    with refuses(ConfigError, "GaussianProcessHead", "LinearHead"):
        initialise(plain, Delta(plain), token_batch())
