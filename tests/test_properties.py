"""Properties over random shapes, masks, types, ranks, heads and granularities."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Bernoulli, Frames, Granularity, predict, remove
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField, PooledContext
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.models import StochasticCore
from bayes_adapters.priors import identity_normal
from tests.helpers import CONTEXT, VOCAB, bert, fill_B, pad
from tests.information import of_labels

BACKBONE = bert(layers=1)
PROFILE = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

# Strategies draw numbers only; tensors and modules are built inside the tests, where random modules may be used.


@st.composite
def batches(draw: Any) -> dict[str, Any]:
    size, length, frames = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return {
        "length": length,
        "lengths": draw(st.lists(st.integers(1, length), min_size=size, max_size=size)),
        "heard": draw(
            st.lists(st.lists(st.booleans(), min_size=frames, max_size=frames), min_size=size, max_size=size)
        ),
        "with_audio": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        "seed": draw(st.integers(0, 2**16)),
    }


def build_batch(spec: dict[str, Any]) -> Batch:
    """Right-padded tokens and frames with arbitrary holes, any number of examples, some without audio at all."""
    lengths, heard = torch.tensor(spec["lengths"]), torch.tensor(spec["heard"])
    rng = torch.Generator().manual_seed(spec["seed"])
    mask = (torch.arange(spec["length"]) < lengths[:, None]).long()
    values = torch.randn(*heard.shape, CONTEXT, generator=rng).to(getattr(torch, spec["dtype"]))
    return Batch(
        {"input_ids": torch.randint(0, VOCAB, mask.shape, generator=rng), "attention_mask": mask},
        torch.randint(0, 2, (len(lengths),), generator=rng).float(),
        {"audio": Frames(values, heard)} if spec["with_audio"] else {},
    )


LOCAL = ["contextual", "cross_attention", "shared_kv", "pooled_context"]


@st.composite
def pairs(draw: Any) -> dict[str, Any]:
    granularity = draw(st.sampled_from(list(Granularity)))
    names = ["mean_field", "delta", *([] if granularity is Granularity.GLOBAL else LOCAL)]
    return {
        "granularity": granularity,
        "guide": draw(st.sampled_from(names)),
        "rank": draw(st.integers(1, 4)),
        "num_data": draw(st.integers(1, 1000)),
        "identity": draw(st.booleans()),
        "pooling": draw(st.sampled_from(["mean", "cls", "last"])),
        "heads": draw(st.integers(1, 3)),
        "scale": draw(st.sampled_from(["sigmoid_squared", "softplus"])),
        "seed": draw(st.integers(0, 2**16)),
    }


def build_pair(spec: dict[str, Any]) -> tuple[StochasticCore, Any]:
    remove(BACKBONE)
    torch.manual_seed(spec["seed"])
    model = StochasticCore(
        BACKBONE,
        Bernoulli(),
        granularity=spec["granularity"],
        rank=spec["rank"],
        num_data=spec["num_data"],
        prior=identity_normal(spec["rank"], 0.3) if spec["identity"] else None,
        pooling=spec["pooling"],
    )
    fill_B(model)
    shared: dict[str, Any] = {"width": 5, "scale": spec["scale"]}
    cross = shared | {"context_dim": CONTEXT, "dim": 2 * spec["heads"], "heads": spec["heads"]}
    build: dict[str, Any] = {
        "mean_field": lambda: MeanField(model, init_scale=0.4),
        "delta": lambda: Delta(model),
        "contextual": lambda: Contextual(model, **shared),
        "cross_attention": lambda: CrossAttention(model, **cross),
        "shared_kv": lambda: CrossAttention(model, share_kv=True, **cross),
        "pooled_context": lambda: PooledContext(model, context_dim=CONTEXT, dim=3, **shared),
    }
    return model, build[spec["guide"]]()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=2e-4, atol=5e-6)


@PROFILE
@given(pairs(), batches())
def test_the_elbo_is_finite_equals_stock_pyro_and_reaches_every_guide_parameter(
    pair: dict[str, Any], data: dict[str, Any]
) -> None:
    (model, guide), batch = build_pair(pair), build_batch(data)
    torch.manual_seed(1)
    terms = ELBO(model, guide).terms(batch)
    torch.manual_seed(1)
    stock = TraceMeanField_ELBO().differentiable_loss(model, guide, batch)
    close(terms.loss, stock / model.data_size(batch))
    assert torch.isfinite(terms.loss)
    if not isinstance(guide, Delta):
        assert terms.kl >= 0
    terms.loss.backward()
    for name, p in guide.named_parameters():
        if isinstance(guide, (MeanField, Delta, Contextual)) or "heads" in name:
            assert p.grad is not None, name
        assert p.grad is None or torch.isfinite(p.grad).all(), name


@PROFILE
@given(pairs(), batches(), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_predictions_do_not_depend_on_how_the_data_is_cut_or_padded(
    pair: dict[str, Any], data: dict[str, Any], samples: int, chunk: int, tokens: int, frames: int
) -> None:
    (model, guide), batch = build_pair(pair), build_batch(data)
    whole = predict(model, guide, batch, num_samples=samples, return_samples=True)
    single = predict(model, guide, [batch[i : i + 1] for i in range(batch.size)], num_samples=samples, chunk_size=chunk)
    padded = predict(model, guide, pad(batch, tokens, frames), num_samples=samples)
    order = torch.arange(batch.size).flip(0)
    turned = predict(model, guide, batch[order], num_samples=samples)
    for name in ("mean", "total", "epistemic", "log_density"):
        close(getattr(single, name), getattr(whole, name))
        close(getattr(padded, name), getattr(whole, name))
        close(getattr(turned, name), getattr(whole, name)[order])
    assert whole.samples is not None
    for name, expected in of_labels(whole.samples)._asdict().items():
        close(getattr(whole, name).double(), expected)


@PROFILE
@given(pairs(), batches(), st.integers(1, 4))
def test_the_kl_does_not_see_padding(pair: dict[str, Any], data: dict[str, Any], extra: int) -> None:
    """At the posterior mean upstream the KL is a function of the real tokens."""
    (model, guide), batch = build_pair(pair), build_batch(data)
    with torch.no_grad():
        for p in guide.parameters():
            p.mul_(0.5)
    values = []
    for b in (batch, pad(batch, extra)):
        with PosteriorMean():
            values.append(ELBO(model, guide).terms(b).kl)
    close(values[0], values[1])


@PROFILE
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 4),
    st.lists(st.integers(1, 4), max_size=3),
    st.floats(0.1, 32.0),
)
def test_the_layer_is_linear_algebra(d_in: int, d_out: int, rank: int, shape: list[int], alpha: float) -> None:
    layer = AdaptedLinear(nn.Linear(d_in, d_out), rank, alpha)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, *shape, d_in)
    merged = layer.base_layer.weight + alpha / rank * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), nn.functional.linear(x, merged, layer.base_layer.bias), rtol=1e-3, atol=1e-3)


@PROFILE
@given(
    st.integers(1, 3), st.floats(-3, 3), st.floats(0.05, 3.0), st.floats(-3, 3), st.floats(0.05, 3.0), st.floats(0, 4)
)
def test_kl_of_any_two_gaussians(rank: int, m: float, s: float, prior_m: float, prior_s: float, weight: float) -> None:
    remove(BACKBONE)
    model = StochasticCore(
        BACKBONE,
        Bernoulli(),
        granularity="sequence",
        rank=rank,
        prior=dist.Normal(torch.tensor(prior_m), torch.tensor(prior_s)),
    )
    guide = MeanField(model)
    with torch.no_grad():
        for key in guide.loc:
            guide.loc[key].fill_(m)
            guide.rho[key].fill_(torch.tensor(s).log())
    batch = Batch({"input_ids": torch.ones(3, 2, dtype=torch.long)}, torch.zeros(3))
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(m, s), torch.distributions.Normal(prior_m, prior_s)
    )
    found = ELBO(model, guide, kl_weight=weight).terms(batch).kl
    torch.testing.assert_close(found, 2 * rank**2 * weight * exact, rtol=1e-3, atol=1e-4)
