"""Likelihoods as a third party writes them, in a file of its own: as little as a name, a size and a distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import Categorical, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import MeanField
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.information import averaged
from tests.internals import only_registered
from tests.refusals import refuses


class Ranks(Categorical):
    """Pyro's own cumulative logit, a subclass of Categorical whose type has another name."""

    name: ClassVar[str] = "ranks"

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.classes, self.num_outputs = num_classes, 1

    def distribution(self, outputs: Tensor) -> Any:
        return dist.OrderedLogistic(outputs[..., 0].float(), torch.linspace(-1.0, 1.0, self.classes - 1))

    def check(self, targets: Tensor) -> None:
        Likelihood.check(self, targets)

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.classes}


class LaplaceNoise(Likelihood):
    """Nothing but what must be there, and a learned scale."""

    name: ClassVar[str] = "laplace_noise"
    num_outputs = 1

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def distribution(self, outputs: Tensor) -> Any:
        return dist.Laplace(outputs[..., 0].float(), self.log_scale.exp())


class Silent(LaplaceNoise):
    """A distribution that knows no moments."""

    name: ClassVar[str] = "silent"

    def distribution(self, outputs: Tensor) -> Any:
        noise = dist.Normal(outputs[..., 0].float(), self.log_scale.exp())
        return dist.TransformedDistribution(noise, [dist.transforms.AffineTransform(0.0, 2.0)])


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    only_registered(monkeypatch, Ranks, LaplaceNoise)


def pair(likelihood: Likelihood) -> tuple[Any, Any]:
    model = core_model("global", likelihood=likelihood)
    return model, MeanField(model, init_scale=0.5)


TARGETS = {Ranks: torch.tensor([0, 2, 1, 1, 0]), LaplaceNoise: torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5])}


@pytest.mark.parametrize("kind", [Ranks, LaplaceNoise])
def test_it_fits_predicts_saves_and_loads(kind: Any, tmp_path: Path) -> None:
    model, guide = pair(kind())
    batch = token_batch(targets=TARGETS[kind])
    model.num_data = batch.size
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = fit(
        model, guide, batch, epochs=60, optimizer=lambda p: torch.optim.Adam(p, 0.02), validation=batch, progress=False
    )
    assert result.best_value is not None
    assert result.best_value < result.history[0]["val_nll"] - 0.1
    assert not torch.equal(before["head.weight"], model.head.weight)
    found = predict(model, guide, batch, num_samples=6, return_samples=True)
    save(tmp_path, model, guide)
    again = predict(*load(tmp_path, bert()), batch, num_samples=6, return_samples=True)
    for name in ("mean", "total", "epistemic", "samples", "log_density"):
        assert torch.equal(getattr(found, name), getattr(again, name)), name


@pytest.mark.parametrize(("kind", "shape"), [(Ranks, (6, 5, 3)), (LaplaceNoise, (6, 5))])
def test_samples_are_each_draws_mean(kind: Any, shape: tuple[int, ...]) -> None:
    model, guide = pair(kind())
    found = predict(model, guide, token_batch(targets=TARGETS[kind]), num_samples=6, chunk_size=4, return_samples=True)
    assert found.samples is not None
    assert found.samples.shape == shape
    torch.testing.assert_close(found.samples.mean(0), found.mean)
    assert found.samples.std(0).min() > 0


def test_the_default_split_of_classes_is_that_of_categorical() -> None:
    outputs = torch.randn(6, 4, 1)
    logits = Ranks().distribution(outputs).probs.log()
    found, expected = averaged(Ranks(), outputs), averaged(Categorical(3), logits)
    for name in ("mean", "total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


@torch.no_grad()
def test_the_default_split_of_real_numbers() -> None:
    """Total is the entropy of a Laplace distribution with the variance of the mixture."""
    outputs = torch.randn(6, 4, 1)
    found = averaged(LaplaceNoise(), outputs)
    variance = 2.0 + outputs[..., 0].var(0, correction=0)
    torch.testing.assert_close(found.variance, variance)
    torch.testing.assert_close(found.aleatoric, torch.distributions.Laplace(0.0, torch.ones(4)).entropy())
    torch.testing.assert_close(found.total, torch.distributions.Laplace(0.0, (variance / 2).sqrt()).entropy())
    assert not averaged(LaplaceNoise(), outputs[:1]).epistemic.any()


@torch.no_grad()
def test_a_distribution_without_moments_says_what_to_override() -> None:
    with refuses(ConfigError, "TransformedDistribution", "Silent"):
        averaged(Silent(), torch.zeros(2, 3, 1))


@pytest.mark.parametrize(
    ("likelihood", "targets", "facts"),
    [
        (LaplaceNoise(), torch.zeros(4, 1), ("LaplaceNoise", (4,), (4, 1))),
        (LaplaceNoise(), torch.tensor([1.0, float("nan")]), ("LaplaceNoise", "nan", [1])),
        (LaplaceNoise(), torch.tensor([1.0, float("inf")]), ("LaplaceNoise", "inf", [1])),
        (Ranks(), torch.tensor([0, 3]), ("Ranks", [1], [3])),
        (Ranks(), torch.tensor([-1, 2]), ("Ranks", [0], [-1])),
    ],
    ids=str,
)
def test_the_default_check_asks_the_distribution(
    likelihood: Likelihood, targets: Tensor, facts: tuple[object, ...]
) -> None:
    with refuses(DataError, *facts):
        likelihood.check(targets)
    likelihood.check(TARGETS[type(likelihood)])


def test_nan_outputs_are_not_the_surest_of_all() -> None:
    for outputs in (torch.full((3, 2, 1), float("nan")), torch.full((3, 2, 1), float("inf"))):
        with torch.no_grad():
            fn = dist.Laplace(outputs[..., 0], 1.0, validate_args=False)
            likelihood = LaplaceNoise()
            assert likelihood.predict(likelihood.summarise(fn), 3).epistemic.isnan().all()
