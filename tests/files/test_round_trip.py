"""Saved adapters come back bit for bit: every guide, likelihood, prior, backbone and dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bayes_adapters
from bayes_adapters import Batch, Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, load, predict, save
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MCDropout, MeanField, PooledContext
from bayes_adapters.models import AdapterDropout, DiagonalCore, FusionLoRA, LoRA, StochasticCore, StochasticDown
from bayes_adapters.priors import identity_normal
from bayes_adapters.reliability import FrameDensity, Reliability
from tests.files.parts import Pair, pair, scramble
from tests.helpers import CONTEXT, bert, gpt2, token_batch, vit, whisper
from tests.refusals import refuses


def check_round_trip(saved: Pair, fresh: nn.Module, batch: Batch, folder: Path) -> Pair:
    """Save, load on a fresh backbone, compare predictions bit for bit; the random state must stay untouched."""
    model, guide = saved
    model.eval(), guide.eval()
    save(folder, model, guide)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, guide_again = load(folder, fresh)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is type(model)
    assert type(guide_again) is type(guide)
    assert again.config() == model.config()
    assert again.num_data == model.num_data
    assert guide_again.config() == guide.config()
    first, second = (predict(m, g, batch, num_samples=3, return_samples=True) for m, g in (saved, (again, guide_again)))
    for name in ("mean", "total", "aleatoric", "epistemic", "samples", "variance"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None and b is None) or torch.equal(a, b), name
    assert again.prior.to_json() == model.prior.to_json()
    for site in model.sites:
        assert type(again.prior.of(site)) is type(model.prior.of(site))
        assert torch.equal(again.prior.of(site).mean, model.prior.of(site).mean.float())
    trained = {"model." + k: v for k, v in model.trainable_parameters().items()}
    assert trained.keys() <= load_file(folder / "adapter.safetensors").keys()
    return again, guide_again


GUIDES: list[tuple[Any, dict[str, Any]]] = [
    (Delta, {}),
    (MeanField, {"init_scale": 0.2}),
    (Contextual, {"width": 5, "scale": "softplus"}),
    (PooledContext, {"context_dim": CONTEXT, "dim": 4}),
    (CrossAttention, {"context_dim": CONTEXT, "dim": 4, "heads": 2}),
    (CrossAttention, {"context_dim": CONTEXT, "dim": 4, "share_kv": True, "null_context": True}),
]


@pytest.mark.parametrize(
    ("guide", "options", "granularity"),
    [(g, o, k) for g, o in GUIDES for k in ("global", "sequence", "token") if k in {s.value for s in g.serves}],
)
def test_every_guide_and_granularity(guide: Any, options: dict[str, Any], granularity: str, tmp_path: Path) -> None:
    check_round_trip(pair(None, granularity, guide, **options), bert(), token_batch().without_targets(), tmp_path / "a")


@pytest.mark.parametrize("guide", [PooledContext, CrossAttention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frame_density_comes_back_with_its_prior(guide: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """Where frames are far from those of training, predictions depend on the density's buffers and on the prior."""
    frames = token_batch().context["audio"]
    density = FrameDensity.fit([torch.randn(60, CONTEXT), torch.randn(60, CONTEXT) - 1], [frames] * 10)
    density.limit.mul_(0.3)
    reliability = Reliability(density, "prior", 0.4)
    model, guide = pair(guide=guide, context_dim=CONTEXT, reliability=reliability, prior=dist.Normal(0.3, 0.7))
    assert (density(frames)[frames.present] < 0.99).all()
    model.to(dtype)
    check_round_trip((model, guide), bert().to(dtype), token_batch().without_targets(), tmp_path)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(3), Gaussian(0.5), HeteroscedasticGaussian(0.01)])
def test_every_likelihood(likelihood: nn.Module, tmp_path: Path) -> None:
    again, _ = check_round_trip(pair(likelihood=likelihood), bert(), token_batch().without_targets(), tmp_path)
    assert type(again.likelihood) is type(likelihood)
    assert again.likelihood.config() == likelihood.config()  # type: ignore[operator]


def by_name(name: str, shape: tuple[int, ...]) -> Any:
    loc = torch.eye(shape[-1]) if "layer.0" in name else torch.zeros(shape[-1], shape[-1])
    return dist.Normal(loc, 0.1 + loc)


@pytest.mark.parametrize(
    "prior",
    [
        None,
        dist.Normal(0.1, 0.3),
        dist.Laplace(0.0, 0.2),
        dist.Uniform(-1.0, 0.5),
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        identity_normal(3, 0.1),
        {"*query": dist.Normal(0.0, 1.0), "*": dist.StudentT(5.0, 0.0, 0.2)},
        by_name,
    ],
)
@pytest.mark.parametrize("granularity", ["global", "token"])
def test_every_way_to_give_a_prior(prior: Any, granularity: str, tmp_path: Path) -> None:
    if isinstance(prior, dict) and granularity == "global":
        prior = {"core.global": dist.StudentT(5.0, 0.0, 0.2)}
    check_round_trip(pair(None, granularity, Delta, prior=prior), bert(), token_batch().without_targets(), tmp_path)


def images() -> Batch:
    return Batch({"pixel_values": torch.randn(3, 3, 16, 16)})


def mels() -> Batch:
    return Batch({"input_features": torch.randn(3, 8, 20)})


@pytest.mark.parametrize(
    ("backbone", "targets", "batch"),
    [
        (bert, "all-linear", lambda: token_batch().without_targets()),
        (gpt2, ["c_attn"], lambda: token_batch().without_targets()),
        (vit, ["q_proj", "fc1"], images),
        (whisper, ["q_proj", "v_proj"], mels),
    ],
)
@pytest.mark.parametrize(("granularity", "guide"), [("global", MeanField), ("token", Contextual)])
def test_every_backbone(
    backbone: Callable[[], nn.Module],
    targets: Any,
    batch: Callable[[], Batch],
    granularity: str,
    guide: Any,
    tmp_path: Path,
) -> None:
    if targets == "all-linear" and granularity == "token":
        targets = Targets("all-linear", exclude=["pooler.dense"])  # it sees one vector, not tokens
    check_round_trip(pair(backbone(), granularity, guide, targets=targets), backbone(), batch(), tmp_path)


@pytest.mark.parametrize("structure", [StochasticCore, StochasticDown, DiagonalCore, AdapterDropout])
def test_one_site_a_layer(structure: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if structure in (StochasticDown, DiagonalCore) else {"granularity": "global"}
    options |= {} if structure is AdapterDropout else {"num_data": 50}
    model = structure(bert(), Bernoulli(), rank=2, grouped=False, **options)
    guide = MCDropout(model) if structure is AdapterDropout else MeanField(model)
    batch = token_batch().without_targets()
    again, _ = check_round_trip(scramble(model, guide), bert(), batch, tmp_path)
    assert [site.name for site in again.sites] == [site.name for site in model.sites]
    assert len(again.sites) == len(again.layers) == 4


@pytest.mark.parametrize("structure", [LoRA, FusionLoRA])
def test_models_without_cores(structure: Any, tmp_path: Path) -> None:
    options = {"context_dim": CONTEXT, "fusion_width": 7} if structure is FusionLoRA else {}
    sizes = {"rank": 2, "alpha": 3.0, "num_data": 50}
    model = structure(bert(), Categorical(2), dropout=0.1, pooling="cls", **sizes, **options)
    check_round_trip(scramble(model, Delta(model)), bert(), token_batch().without_targets(), tmp_path)


def test_a_path_that_is_the_end_of_another_is_not_mistaken_for_it(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.config = bert().config
            self.inner = bert()
            self.proj = nn.Linear(16, 16)
            self.inner.proj = nn.Linear(16, 16)

        def forward(self, **inputs: Tensor) -> Any:
            out = self.inner(**inputs)
            out.last_hidden_state = self.proj(out.last_hidden_state)
            return out

    again, _ = check_round_trip(pair(Nested(), targets="proj"), Nested(), token_batch().without_targets(), tmp_path)
    assert again.layers == ["proj"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    """Adapters keep the dtype they have, whether the backbone alone or the whole model was cast."""
    model, guide = pair(bert().to(dtype))
    check_round_trip((model, guide), bert().to(dtype), token_batch().without_targets(), tmp_path / "base")
    whole, guide = pair(None, "sequence", Contextual)
    whole.to(dtype)
    again, _ = check_round_trip((whole, guide), bert().to(dtype), token_batch().without_targets(), tmp_path / "whole")
    assert again.head.weight.dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_saved_on_a_gpu_loads_on_the_cpu(tmp_path: Path) -> None:
    model, guide = pair(bert().cuda())
    guide.cuda()
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert {p.device.type for p in [*again.parameters(), *guide_again.parameters()]} == {"cpu"}
    for name, p in guide.named_parameters():
        assert torch.equal(p.cpu(), dict(guide_again.named_parameters())[name])


def test_persistent_buffers_are_saved_and_non_persistent_ones_are_not(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide)
    names = load_file(tmp_path / "adapter.safetensors").keys()
    assert not any("base_layer" in n or "prior" in n or "embeddings" in n for n in names)
    guide.register_buffer("count", torch.tensor(3))
    model.likelihood.register_buffer("seen", torch.tensor([1.5]))
    save(tmp_path, model, guide)
    assert {"guide.count", "model.likelihood.seen"} <= load_file(tmp_path / "adapter.safetensors").keys()
    with refuses(AdapterFileError, "model.likelihood.seen"):
        load(tmp_path, bert())


def test_exported_at_the_top() -> None:
    assert bayes_adapters.save is save
    assert bayes_adapters.load is load
