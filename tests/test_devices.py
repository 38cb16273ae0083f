"""Everything runs on another device than the CPU, and a guide that is elsewhere than its model is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, Categorical, Frames, Gaussian, Tagging, load, predict, save
from bayes_adapters.analysis.attribution import attribute
from bayes_adapters.analysis.bootstrap import paired_bootstrap
from bayes_adapters.analysis.metrics import Decomposition, auroc, decompose, reliability_bins, risk_coverage
from bayes_adapters.analysis.records import score
from bayes_adapters.devices import float64
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MCDropout, MeanField, RankWise
from bayes_adapters.likelihoods import (
    BoundingBox,
    HeteroscedasticGaussian,
    Likelihood,
    Masks,
    MultiGaussian,
    MultiLabel,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
    Tasks,
)
from bayes_adapters.models import AdapterDropout, DiagonalCore, FusionLoRA, LoRA, StochasticDown, StochasticFactors
from bayes_adapters.reliability import FrameDensity, Reliability
from bayes_adapters.surgery.pruning import PruneSchedule
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import batches, fit
from tests.helpers import CASES, CONTEXT, GUIDES, bert, core_model, fill_B, token_batch
from tests.pretend_device import MixedDevices, NoFloat64, pretended, single_precision
from tests.refusals import refuses, warns


@pytest.fixture
def there() -> Iterator[str]:
    with pretended() as name:
        yield name


def test_the_pretended_device_refuses_what_a_gpu_refuses(there: str) -> None:
    layer, x = torch.nn.Linear(3, 2), torch.ones(4, 3)
    expected = layer(x)
    layer.to(there)
    found = layer(x.to(there))
    assert str(found.device) == there
    torch.testing.assert_close(found.cpu(), expected)
    found.sum().backward()
    assert str(next(layer.parameters()).grad.device) == there  # type: ignore[union-attr]
    assert (found * torch.tensor(2.0)).device == found.device, "a number of the CPU is allowed"
    assert found[torch.tensor([0, 1])].shape == (2, 2), "an index, too"
    for wrong in (
        lambda: layer(x),
        lambda: found + torch.ones(2),
        lambda: torch.randn(2, device=there, generator=torch.Generator()),
        lambda: found.numpy(),
        lambda: torch.ones(3)[torch.tensor([0, 1], device=there)],
    ):
        with pytest.raises(MixedDevices):
            wrong()


MODELS: dict[str, Callable[..., Any]] = {
    "lora": lambda net: Delta(LoRA(net, Categorical(3), rank=2)),
    "fusion": lambda net: Delta(FusionLoRA(net, Bernoulli(), rank=2, context_dim=CONTEXT, fusion_width=5)),
    "mask": lambda net: MCDropout(AdapterDropout(net, Bernoulli(), rank=2)),
    "ranks": lambda net: RankWise(StochasticFactors(net, Gaussian(), rank=2, num_data=9), local_reparametrisation=True),
    "flipout": lambda net: MeanField(StochasticDown(net, Bernoulli(), rank=2, num_data=9, flipout=True)),
    "diagonal": lambda net: MeanField(DiagonalCore(net, Bernoulli(), rank=2, num_data=9)),
    "tagging": lambda net: Contextual(core_model(backbone=net, likelihood=Tagging(3))),
} | {f"{g}-{n}": lambda net, g=g, n=n: GUIDES[n](core_model(g, backbone=net)) for g, n in CASES if g != "sequence"}

TARGETS = {
    Categorical: torch.tensor([0, 2, 1, 1, 0]),
    Gaussian: torch.tensor([0.1, -1.0, 0.4, 2.0, 0.0]),
    Tagging: torch.arange(35).reshape(5, 7) % 3,
}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_run_on_another_device(name: str, there: str, tmp_path: Path) -> None:
    guide = MODELS[name](bert().to(there))
    model = guide.model
    batch = token_batch(targets=TARGETS.get(type(model.likelihood)))
    assert {str(t.device) for t in (*guide.parameters(), *guide.buffers())} <= {there}
    ELBO(model, guide, num_particles=2)(batch.to(there)).backward()
    options = {"validation": [batch], "checkpoint": tmp_path / "run", "clip_norm": 1.0, "num_samples": 2}
    for epochs in (1, 2):
        fit(model, guide, [batch, batch], epochs=epochs, progress=False, **options)
    fit(model, guide, [batch], epochs=1, progress=False, autocast=torch.bfloat16)
    found = predict(model, guide, batch, num_samples=3, chunk_size=2, return_samples=True)
    assert str(found.probs.device) == there
    predict(model, guide, batch, mean_only=True)
    if batch.context and not isinstance(model.likelihood, Tagging):
        attribute(model, guide, batch, num_samples=2)
    save(tmp_path / "adapter", model, guide)
    again = predict(*load(tmp_path / "adapter", bert().to(there)), batch, num_samples=3)
    torch.testing.assert_close(again.probs.cpu(), found.probs.cpu())


def test_a_prior_on_a_part_of_the_reals_is_refused_by_name_there(there: str) -> None:
    model = core_model("global", backbone=bert().to(there), prior=dist.Uniform(-1.0, 1.0))
    with refuses(ConfigError, "Uniform", "'core.global'", "MeanField"):
        MeanField(model)


def test_a_density_of_frames_follows_its_guide(there: str) -> None:
    frames = Frames(torch.randn(24, 5, CONTEXT), torch.ones(24, 5, dtype=torch.bool))
    density = FrameDensity.fit([torch.randn(60, CONTEXT)], [frames])
    model = core_model(backbone=bert().to(there))
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4, reliability=Reliability(density, scale=1.0))
    assert predict(model, guide, token_batch(), num_samples=2).probs.isfinite().all()


def test_a_guide_of_buffers_on_another_device_than_its_model_is_refused(there: str) -> None:
    lora = fill_B(LoRA(bert(), Bernoulli(), rank=2))
    with warns(UserWarning, "high=", "anchors"):
        model, guide, _ = bayesianise(lora, Delta(lora), [token_batch()])
    assert not list(guide.parameters())
    model.to(there)
    with refuses(ConfigError, "meta", "'log_scale'", "cpu", "guide.to('meta')"):
        predict(model, guide, token_batch())
    guide.to(there)
    assert predict(model, guide, token_batch(), num_samples=2).probs.isfinite().all()


def test_ranks_are_taken_out_there(there: str) -> None:
    model = StochasticFactors(bert().to(there), Bernoulli(), rank=4, num_data=9)
    guide, schedule = RankWise(model), PruneSchedule(threshold=1.0, start=1, every=1, min_rank=1)
    fit(model, guide, [token_batch()], epochs=4, progress=False, on_step=schedule)
    assert set(model.ranks.values()) <= {1, 2, 3}
    assert predict(model, guide, token_batch(), num_samples=2).probs.isfinite().all()


@pytest.mark.parametrize("own", [True, False], ids=["model there", "model on the CPU"])
def test_with_another_default_device(own: bool, there: str) -> None:
    """What the library makes for itself says where it belongs, whatever ``torch.set_default_device`` was given."""
    batch, place = token_batch(8), there if own else "cpu"
    backbone = bert().to(place)
    model = core_model(backbone=bert().to(place))
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
    torch.set_default_device(there)
    try:
        fit(model, guide, batches(batch, 3), epochs=2, progress=False, validation=[batch])
        found = predict(model, guide, batch, num_samples=3)
        attribute(model, guide, batch, num_samples=2)
        density = found.log_density
        assert density is not None
        assert risk_coverage(found.total, -density)[0].device.type == "cpu"
        assert reliability_bins(found.probs, batch.targets).count.sum() == 8  # type: ignore[arg-type]
        assert math.isfinite(auroc(found.total, batch.targets))  # type: ignore[arg-type]
        assert math.isfinite(paired_bootstrap(torch.mean, found.total, found.epistemic, seed=0, draws=5).difference)
        assert {str(p.device) for p in LoRA(backbone, Bernoulli(), rank=2).parameters()} == {place}
    finally:
        torch.set_default_device(None)


def test_float64_is_on_the_cpu_where_the_device_has_none(there: str) -> None:
    value = torch.rand(3)
    moved = value.to(there)
    assert str(float64(moved).device) == there
    with single_precision():
        with pytest.raises(NoFloat64):
            moved.double()
        found = float64(moved)
        assert found.device.type == "cpu"
        assert torch.equal(found, value.double())


OUTCOMES: dict[str, tuple[Likelihood, Any]] = {
    "categorical": (Categorical(3), TARGETS[Categorical]),
    "bernoulli": (Bernoulli(), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])),
    "gaussian": (Gaussian(), TARGETS[Gaussian]),
    "heteroscedastic": (HeteroscedasticGaussian(), TARGETS[Gaussian]),
    "student_t": (StudentT(), TARGETS[Gaussian]),
    "poisson": (Poisson(), torch.tensor([0, 3, 1, 0, 7])),
    "negative_binomial": (NegativeBinomial(), torch.tensor([0, 3, 1, 0, 7])),
    "ordinal": (Ordinal(3), TARGETS[Categorical]),
    "multi_label": (MultiLabel(2), torch.ones(5, 2)),
    "multi_gaussian": (MultiGaussian(2), torch.zeros(5, 2)),
    "bounding_box": (BoundingBox(giou_weight=1.0), torch.full((5, 4), 0.5)),
    "tagging": (Tagging(3), TARGETS[Tagging]),
    "masks": (Masks((1, 7), (2, 14), 3, dice_weight=1.0), torch.arange(140).reshape(5, 2, 14) % 3),
    "tasks": (
        Tasks({"kind": Categorical(3), "size": Gaussian()}),
        {"kind": TARGETS[Categorical], "size": TARGETS[Gaussian]},
    ),
}


@pytest.mark.parametrize("name", list(OUTCOMES))
def test_prediction_there_needs_no_float64(name: str, there: str) -> None:
    """What float64 holds is then on the CPU; the numbers are the same, and they come back to the device."""
    likelihood, targets = OUTCOMES[name]
    model = core_model(backbone=bert().to(there), likelihood=likelihood)
    guide, batch = Contextual(model), token_batch(targets=targets)
    options: dict[str, Any] = {"num_samples": 3, "chunk_size": 2, "return_samples": True}
    expected = predict(model, guide, batch, **options)
    with single_precision():
        found = predict(model, guide, batch, **options)
        ELBO(model, guide)(batch.to(there)).backward()
    for part in ("mean", "total", "aleatoric", "epistemic", "variance", "log_density", "samples"):
        value, wanted = getattr(found, part), getattr(expected, part)
        assert (value is None) == (wanted is None)
        if value is not None:
            assert str(value.device) == there
            assert torch.equal(value.cpu(), wanted.cpu())
    assert {str(task.mean.device) for task in found.tasks.values()} <= {there}


def test_surgery_and_analysis_there_need_no_float64(there: str) -> None:
    with single_precision():
        lora = fill_B(LoRA(bert().to(there), Bernoulli(), rank=2))
        with warns(UserWarning, "high=", "anchors"):
            model, guide, _ = bayesianise(lora, Delta(lora), [token_batch()])
        assert {str(t.device) for t in (*model.parameters(), *guide.buffers())} == {there}
        found = predict(model, guide, token_batch(8), num_samples=2, return_samples=True)
        assert found.samples is not None
        split = decompose(found.samples)
        torch.testing.assert_close(split.total.float(), found.total.cpu())
        targets = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
        parts = Decomposition(found.total, found.aleatoric, found.epistemic)
        kept = score("lora", 0, "test", "clean", found.probs, targets, parts, samples=2, seconds=1.0)
        assert math.isclose(kept.total, float(found.total.cpu().double().mean()))
        pruned = StochasticFactors(bert().to(there), Bernoulli(), rank=4, num_data=9)
        schedule = PruneSchedule(threshold=1.0, start=1, every=1, min_rank=1)
        fit(pruned, RankWise(pruned), [token_batch()], epochs=4, progress=False, on_step=schedule)
        assert set(pruned.ranks.values()) <= {1, 2, 3}
        frames = Frames(torch.randn(24, 5, CONTEXT), torch.ones(24, 5, dtype=torch.bool)).to(there)
        density = FrameDensity.fit([torch.randn(60, CONTEXT).to(there)], [frames])
        assert str(density.means.device) == there


def test_training_there_needs_no_float64(there: str) -> None:
    model = core_model(backbone=bert().to(there))
    guide = Contextual(model)
    with single_precision():
        assert fit(model, guide, [token_batch()], epochs=2, progress=False, clip_norm=1.0).steps == 2
