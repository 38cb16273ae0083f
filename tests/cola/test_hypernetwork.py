"""The hypernetwork that decides the second path's core, and other guides of that core."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bayes_adapters import ELBO, Batch, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, Hypernetwork, MeanField
from bayes_adapters.guides.hypernetwork import Phi, _Net
from tests.cola.parts import cola
from tests.helpers import WIDTH
from tests.refusals import refuses
from tests.text_and_audio import batch, encoders


def test_every_tensor_gets_gradient_from_the_second_step() -> None:
    model, data = cola(fill=False), batch()
    guide = Hypernetwork(model, gamma=4)
    elbo = ELBO(model, guide, kl_weight=0.0)
    parameters = {**model.trainable_parameters(), **{f"guide.{n}": p for n, p in guide.named_parameters()}}
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.1)
    elbo(data).backward()
    moving = {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n for n in moving if "lora_" in n} == {n for n in parameters if "lora_B" in n}, "only B at the start"
    optimizer.step()
    optimizer.zero_grad()
    elbo(data).backward()
    # the output projection's descriptor of the last block, say, matters to the last layers only
    still = {n for n, p in parameters.items() if p.grad is None or p.grad.abs().max() == 0}
    assert {n for n in still if "null" not in n} == set()


def test_phi_at_the_start_is_normalised_dense_and_spans_few_dimensions() -> None:
    net = _Net(768, 48, 16, Phi.DENSE, None)
    with torch.no_grad():
        core, _ = net(torch.randn(400, 768))
    assert core.mean((-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(core.std((-2, -1), correction=0), torch.ones(400), rtol=1e-3, atol=0)
    assert torch.linalg.matrix_rank(core.flatten(1)) <= 48 + 2


def test_the_hypernetwork_by_hand() -> None:
    model = cola()
    guide = Hypernetwork(model, gamma=4, phi="dense")
    key, net = next(iter(guide.nets.items()))
    x = torch.randn(5, WIDTH)
    z = F.gelu(x @ net.down.weight.T + net.down.bias)
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    u = (z @ net.up.weight.T + net.up.bias).reshape(5, 3, 3)
    expected = (u - u.mean((1, 2), keepdim=True)) / (u.var((1, 2), correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(net(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert key.startswith("cross-text-")


GUIDES = {
    "dense": lambda m: Hypernetwork(m, gamma=4),
    "kron": lambda m: Hypernetwork(m, gamma=4, phi="kron"),
    "static": lambda m: Hypernetwork(m, gamma=4, phi="static"),
    "identity": lambda m: Hypernetwork(m, gamma=4, phi="identity"),
    "bayesian": lambda m: Hypernetwork(m, gamma=4, scale="softplus"),
    "bayesian static": lambda m: Hypernetwork(m, gamma=4, phi="static", scale="softplus"),
    "mean field": MeanField,
    "delta": Delta,
}


@pytest.mark.parametrize(
    ("name", "share"), [*((name, "all") for name in GUIDES), *(("bayesian", share) for share in ("none", "A", "B"))]
)
def test_any_guide_trains_predicts_and_survives_a_file(name: str, share: str, tmp_path: Path) -> None:
    model, data = cola(share=share, rank=4), batch()
    guide = GUIDES[name](model)
    elbo = ELBO(model, guide, kl_weight=1e-3)
    optimizer = torch.optim.Adam([*model.trainable_parameters().values(), *guide.parameters()], lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = elbo(data)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(x) for x in losses)
    first = predict(model, guide, data.without_targets(), num_samples=3, return_samples=True)
    stochastic = "bayesian" in name or name == "mean field"
    assert bool((first.epistemic > 1e-9).any()) == stochastic
    save(tmp_path / "a", model, guide)
    nets = encoders()
    loaded = load(tmp_path / "a", nets)
    again = predict(*loaded, data.without_targets(), num_samples=3, return_samples=True)
    assert first.samples is not None
    torch.testing.assert_close(again.samples, first.samples, rtol=1e-6, atol=1e-7)


def test_draws_do_not_depend_on_how_the_data_is_cut() -> None:
    model, data = cola(), batch()
    guide = Hypernetwork(model, gamma=4, scale="softplus")
    whole = predict(model, guide, data, num_samples=4, return_samples=True).samples
    parts = predict(model, guide, [data[:1], data[1:]], num_samples=4, chunk_size=3, return_samples=True).samples
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_a_hypernetwork_that_was_cast_with_its_model_is_refused_by_name() -> None:
    model = cola().bfloat16()
    features = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch().inputs.items()}
    data = Batch(features, batch().targets)
    guide = Hypernetwork(model, gamma=4, scale="softplus")
    assert ELBO(model, guide)(data).isfinite()
    with refuses(ConfigError, "Hypernetwork", "torch.bfloat16", "float32", "guide.float()"):
        ELBO(model, guide.bfloat16())(data)
