"""The kit on every guide of the library, as a third party would use it on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes_adapters import Batch, Gaussian, registry
from bayes_adapters._options import parameters_of
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import SWAG, Hypernetwork, LowRank, MeanField, RankWise
from bayes_adapters.inference import JointGuide
from bayes_adapters.likelihoods import Tagging, Tasks
from bayes_adapters.models import StochasticCore
from bayes_adapters.testing import CHECKS, CONTEXT_WIDTH, Case, Outcome, check_guide, standard_batch, standard_models
from bayes_adapters.testing.case import standard_backbone
from tests.cola.parts import cola
from tests.text_and_audio import batch as text_and_audio
from tests.text_and_audio import encoders

SMALL = {"context_dim": CONTEXT_WIDTH, "dim": 4}
"""Options that constructors need, or that make them smaller."""
OPTIONS: dict[str, dict[str, Any]] = {
    "rank_wise": {"init_log_variance": -3.0},
    "low_rank": {"covariance_rank": 8},
    "swag": {"columns": 3},
    "inducing_weights": {"inducing": (2, 1)},
    "input_noise": {"context_dim": None, "width": 4},
}
NAMED = [name for name in registry.names("guide") if name != "hypernetwork"]
ALIKE = ("amortised", "pooled_context")
"""Of the class that ``contextual`` and ``cross_attention`` are cases of, too."""
SLOW = ("conjugate", "files", "gradient")


def made(name: str) -> Callable[[Any], Any]:
    guide = registry.find("guide", name)
    known = parameters_of(guide)
    needed = {option: value for option, value in SMALL.items() if option in known}

    def make(model: Any) -> Any:
        own = guide(model, **{**needed, **OPTIONS.get(name, {})})
        if isinstance(own, SWAG):  # at the start it is all but a point
            with torch.random.fork_rng():
                own.place(own.loc, torch.full_like(own.loc, 0.02), 0.1 * torch.randn(3, own.size))
        return own

    return make


@pytest.mark.parametrize("name", NAMED)
def test_every_registered_guide(name: str) -> None:
    """On the first standard model that it serves."""
    for model, make in standard_models().items():
        try:
            Case(made(name), make, standard_batch()).build()
        except ConfigError:
            continue
        check_guide(made(name), {model: make}, skip=SLOW if name in ALIKE else ()).raise_if_failed()
        return
    raise AssertionError("no standard model is served: add a case of its own below")


@pytest.mark.parametrize(
    ("guide", "model", "family"),
    [
        (MeanField, "A, global", "mean_field"),
        (lambda m: MeanField(m, parameter="root"), "diagonal, global", "mean_field"),
        (lambda m: LowRank(m, covariance_rank=4), "core, global", "full"),
        (lambda m: RankWise(m, init_log_variance=-3.0, local_reparametrisation=True), "A, global", None),
    ],
    ids=["mean field", "root", "full", "local reparametrisation"],
)
def test_families_reach_their_optimum(guide: Any, model: str, family: str | None) -> None:
    checks = ["density", "kl", "gradient", "training_noise", "conjugate"]
    report = check_guide(guide, {model: standard_models()[model]}, checks=checks, family=family).raise_if_failed()
    assert report.of("conjugate")[0].outcome is Outcome.PASSED


def test_local_reparametrisation_of_A_and_B_has_the_loss_of_draws() -> None:
    """Noise of a rank that B A has not would have another loss."""

    def guide(model: Any) -> RankWise:
        return RankWise(model, init_log_variance=-1.0, local_reparametrisation=True)

    report = check_guide(guide, {"AB": standard_models()["A and B, global"]}, checks=["one_function", "training_noise"])
    assert [finding.outcome for finding in report.raise_if_failed()] == [Outcome.PASSED] * 2


def test_a_posterior_over_all_layers_whose_entries_depend_on_each_other() -> None:
    """A flow has no mean and no closed KL; draws stand in the integral's place."""

    class Flow(JointGuide):
        name = "flow"

        def __init__(self, model: Any) -> None:
            super().__init__(model)
            self.loc = torch.nn.Parameter(self.start())
            self.tril = torch.nn.Parameter(0.3 * torch.eye(self.size))

        def joint(self) -> Any:
            base = dist.MultivariateNormal(self.loc, scale_tril=self.tril.tril())
            return dist.TransformedDistribution(base, [dist.transforms.TanhTransform()])

        def config(self) -> dict[str, Any]:
            return {}

    report = check_guide(Flow, {"core": standard_models()["core, global"]}, skip=["files"]).raise_if_failed()
    outcomes = {finding.check: finding.outcome for finding in report}
    assert outcomes["density"] is Outcome.PASSED
    assert outcomes["kl"] is Outcome.SKIPPED


def test_the_guide_of_paths_between_modalities() -> None:
    """On a model and a batch of the caller's own: two encoders."""
    report = check_guide(
        lambda model: Hypernetwork(model, gamma=4, scale="softplus"),
        lambda: cola(encoders(1, 1), fill=False),
        text_and_audio(),
        skip=SLOW,
    )
    report.raise_if_failed()


@pytest.mark.parametrize("kind", ["real", "tokens", "tasks"])
def test_targets_of_another_likelihood(kind: str) -> None:
    batch, source = standard_batch(), torch.Generator().manual_seed(0)
    numbers, words = torch.randn(batch.size, generator=source), torch.randint(3, (batch.size, 6), generator=source)
    targets: Any
    likelihood, targets = {
        "real": (Gaussian, numbers),
        "tokens": (lambda: Tagging(3), words),
        "tasks": (lambda: Tasks({"word": Tagging(3), "number": Gaussian()}), {"word": words, "number": numbers}),
    }[kind]

    def model() -> Any:
        return StochasticCore(standard_backbone(), likelihood(), granularity="sequence", rank=2)

    names = [name for name in CHECKS if name != "conjugate"]
    few = ["one_function", "padding", "scale", "cuts", "files"]  # those that look at targets
    checks = names if kind == "real" else few
    check_guide(MeanField, model, Batch(batch.inputs, targets, batch.context), checks=checks).raise_if_failed()


def test_a_parameter_without_effect_is_no_fault_and_a_guide_of_such_alone_is_one() -> None:
    class Spare(MeanField):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            self.spare = nn.Parameter(torch.zeros(2))

    class Prior(MeanField):
        def posterior(self, call: Any, prior: Any) -> Any:
            return prior

    one = {"core": standard_models()["core, global"]}
    check_guide(Spare, one, checks=["conjugate", "cuts", "gradient"]).raise_if_failed()
    report = check_guide(Prior, one, checks=["conjugate"])
    assert "depends on none" in report.failed[0].found
