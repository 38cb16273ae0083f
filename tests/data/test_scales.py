"""Targets and context in units of their own: a word is said, standardising mends it, predictions keep their unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import (
    ELBO,
    Batch,
    Frames,
    Gaussian,
    HeteroscedasticGaussian,
    load,
    predict,
    save,
)
from bayes_adapters.data import frame_statistics
from bayes_adapters.errors import ConfigError, DataError, ScaleWarning
from bayes_adapters.guides import CrossAttention, Delta
from bayes_adapters.likelihoods import Likelihood, MultiGaussian, StudentT, Tasks
from bayes_adapters.models import LoRA
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, bert, core_model, token_batch
from tests.refusals import refuses, warns

NAN = float("nan")
AGES = 5 + 40 * torch.rand(64, generator=torch.Generator().manual_seed(2))


def ages() -> Batch:
    return Batch({"input_ids": torch.randint(0, 40, (64, 5), generator=torch.Generator().manual_seed(1))}, AGES)


def trained(likelihood: Likelihood, batch: Batch, steps: int = 60) -> tuple[Any, Any]:
    model = LoRA(bert(), likelihood, rank=2)
    guide = Delta(model)
    fit(model, guide, batch, epochs=steps, optimizer=lambda p: torch.optim.Adam(p, 0.01), progress=False)
    return model, guide


def coverage(model: Any, guide: Any, batch: Batch) -> float:
    """The share of targets within 1.96 predictive standard deviations."""
    found = predict(model, guide, batch)
    assert found.variance is not None
    assert isinstance(batch.targets, Tensor)
    return float(((batch.targets - found.mean).abs() < 1.96 * found.variance.sqrt()).float().mean())


def test_targets_in_years_are_warned_of_and_fitted() -> None:
    with warns(ScaleWarning, f"{AGES.abs().median():.3g}", "Gaussian.fitted(training targets)"):
        far = trained(Gaussian(), ages())
    assert coverage(*far, ages()) < 0.2
    near = trained(Gaussian.fitted(AGES), ages())  # a warning would be an error here
    assert 0.85 < coverage(*near, ages()) <= 1.0
    assert abs(float(predict(*near, ages()).mean.mean()) - 25) < 3, "predictions are in years"


@pytest.mark.parametrize(
    "fitted",
    [Gaussian.fitted(AGES), HeteroscedasticGaussian.fitted(AGES), StudentT.fitted(AGES, df=5.0)],
    ids=lambda x: x.name,
)
def test_the_unit_scales_density_mean_and_variance(fitted: Any, tmp_path: Path) -> None:
    """y = m + s t: log p(y) = log p(t) − log s, and moments follow."""
    m, s = float(AGES.double().mean()), float(AGES.double().std())
    options = {k: v for k, v in fitted.config().items() if not k.startswith("target_")} | {"min_scale": 0.0}
    options = {k: v for k, v in options.items() if k != "min_scale" or fitted.name.startswith("hetero")}
    inner = type(fitted)(**options)
    outer = type(fitted)(**options, target_mean=m, target_scale=s)
    assert (fitted.target_mean, fitted.target_scale) == (pytest.approx(m), pytest.approx(s))
    f, t = torch.randn(3, 4, inner.num_outputs), torch.randn(4)
    expected = inner.distribution(f).log_prob(t) - torch.tensor(s).log()
    torch.testing.assert_close(outer.distribution(f).log_prob(m + s * t), expected, rtol=1e-4, atol=1e-4)
    a, b = (x.predict(x.summarise(x.distribution(f)), 3) for x in (inner, outer))
    torch.testing.assert_close(b.mean, m + s * a.mean)
    torch.testing.assert_close(b.variance, s**2 * a.variance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.epistemic, a.epistemic, rtol=1e-3, atol=1e-5)
    model = LoRA(bert(), fitted)
    save(tmp_path, model, Delta(model))
    assert load(tmp_path, bert())[0].likelihood.config() == fitted.config()


def test_the_usual_unit_is_not_written() -> None:
    assert Gaussian().config() == {"init_log_scale": 0.0}
    assert HeteroscedasticGaussian().config() == {"min_scale": 1e-4}


def test_columns_have_units_of_their_own() -> None:
    targets = torch.stack([AGES, 1e4 * AGES], 1)
    targets[0, 1] = NAN
    fitted = MultiGaussian.fitted(targets)
    assert not fitted.advice(targets)
    assert fitted.target_scale == pytest.approx([float(AGES.std()), 1e4 * float(AGES[1:].std())], rel=1e-5)
    assert len(MultiGaussian(2).advice(targets)) == 1
    assert Tasks({"age": Gaussian()}).advice({"age": AGES})[0].startswith("age: ")


@pytest.mark.parametrize("targets", [torch.zeros(8), torch.randn(8), torch.full((8,), 9.0), torch.full((1,), 0.02)])
def test_no_word_of_targets_near_unit_scale(targets: Tensor) -> None:
    assert Gaussian().advice(targets) == []


@pytest.mark.parametrize(
    ("build", "kind", "facts"),
    [
        (lambda: Gaussian.fitted(torch.full((3,), 7.0)), DataError, (3, 7.0)),
        (lambda: Gaussian.fitted(torch.tensor([1.0, NAN])), DataError, ([1], "NaN")),
        (lambda: MultiGaussian.fitted(torch.tensor([[1.0, 2.0], [2.0, 2.0]])), DataError, ("Column 1",)),
        (lambda: Gaussian(target_scale=0.0), ConfigError, ("target_scale", 0.0, "Gaussian.fitted(targets)")),
        (lambda: StudentT(target_mean=NAN), ConfigError, ("target_mean", "nan", "StudentT.fitted(targets)")),
    ],
)
def test_units_that_cannot_be(build: Any, kind: type[Exception], facts: tuple[object, ...]) -> None:
    with refuses(kind, *facts):
        build()


# context


def hertz(batch: Batch) -> Batch:
    frames = batch.context["audio"]
    return Batch(batch.inputs, batch.targets, {"audio": Frames(1e4 + 3e3 * frames.values, frames.mask)}, batch.index)


def test_context_in_hertz_is_warned_of_and_standardised() -> None:
    batch = hertz(token_batch())
    mean, scale = frame_statistics([batch.context["audio"]])
    mended = Batch(batch.inputs, batch.targets, {"audio": batch.context["audio"].standardised(mean, scale)})
    kls = []
    for data in (batch, mended):
        torch.manual_seed(0)
        model = core_model("sequence")
        guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
        for parameter in guide.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        kls.append(float(ELBO(model, guide).terms(data).kl.detach()))
        if data is batch:
            audio = data.context["audio"]
            size = float(audio.values[audio.mask].square().mean().sqrt())
            with warns(ScaleWarning, "'audio'", f"{size:.3g}", "frames.standardised(mean, scale)"):
                fit(model, guide, data, max_steps=1, kl_weight=1e-9, progress=False)
        else:
            fit(model, guide, data, max_steps=1, progress=False)
    assert kls[0] > 1e3 * kls[1]


def test_statistics_are_those_of_all_real_frames() -> None:
    torch.manual_seed(4)
    parts = [Frames(1e4 + torch.randn(3, n, 2), torch.rand(3, n) > 0.4) for n in (5, 9, 2)]
    parts.append(Frames(torch.full((1, 2, 2), 9e9), torch.zeros(1, 2, dtype=torch.bool)))
    real = torch.cat([p.values[p.mask] for p in parts]).double()
    mean, scale = frame_statistics(iter(parts))
    torch.testing.assert_close(mean, real.mean(0).float())
    torch.testing.assert_close(scale, real.std(0, correction=0).float(), rtol=1e-4, atol=1e-5)
    both = torch.cat([p.standardised(mean, scale).values[p.mask] for p in parts])
    torch.testing.assert_close(both.mean(0), torch.zeros(2), rtol=0, atol=2e-3)
    torch.testing.assert_close(both.std(0, correction=0), torch.ones(2), rtol=1e-3, atol=0)


def test_a_constant_feature_keeps_its_scale_and_half_precision_its_dtype() -> None:
    frames = Frames(torch.full((1, 3, 1), 7.0).half(), torch.ones(1, 3, dtype=torch.bool))
    mean, scale = frame_statistics([frames])
    assert (mean.item(), scale.item()) == (7.0, 1.0)
    assert frames.standardised(mean, scale).values.dtype == torch.float16


def test_statistics_that_do_not_fit() -> None:
    frames = Frames(torch.ones(1, 3, 2), torch.ones(1, 3, dtype=torch.bool))
    with refuses(DataError, "mean and scale", "(2,)", "(3,)"):
        frames.standardised(torch.zeros(3), torch.ones(3))
    with refuses(DataError, "scale", 0.0):
        frames.standardised(torch.zeros(2), torch.zeros(2))
    with refuses(DataError, "masks", False):
        frame_statistics([Frames(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool))])
