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
from bayes_adapters.guides import SWAG, Amortised, Hypernetwork, MeanField, RankWise
from bayes_adapters.inference import JointGuide
from bayes_adapters.likelihoods import Tagging, Tasks
from bayes_adapters.models import StochasticCore
from bayes_adapters.testing import CONTEXT_WIDTH, Case, Outcome, check_guide, standard_batch, standard_models
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
    "full_gaussian": {"over": "all"},
    "inducing_weights": {"inducing": (2, 1)},
    "input_noise": {"context_dim": None, "width": 4},
}
NAMED = [name for name in registry.names("guide") if name != "hypernetwork"]
WHOLE = {"cross_attention": Amortised, "low_rank": JointGuide}
"""Guides that have every check for all that is written in a base, which others of that base inherit."""
OF_OPTIONS = ("one_function", "padding", "gradient", "files")
"""What can be wrong where a guide only fixes options of a base: what it reads, what is trained, its config."""
OF_JOINT = ("repeatable", "density", "kl", "gradient", "files", "conjugate")
"""… where it only says which distribution over all weights it is; how that is drawn and scaled is the base's."""
SLOW = ("conjugate", "files", "gradient")
FULL = ("low_rank", "full_gaussian")
"""Hold every Gaussian over the weights of their target, with so many directions: they must reach the posterior."""
KNOWN = (*FULL, "matrix_normal", "inducing_weights")
"""Are Gaussian, so that their KL to the posterior is known."""


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


def own_checks(name: str) -> tuple[str, ...] | None:
    """The checks that see what a guide's class writes itself; None is all of them."""
    guide = registry.find("guide", name)
    base = next((base for base in WHOLE.values() if issubclass(guide, base)), None)
    if base is None or name in WHOLE:
        return None
    overrides = {member for member, value in vars(guide).items() if callable(value) and hasattr(base, member)}
    others = overrides - {"__init__", "config", "joint"}
    if base is Amortised:
        return OF_OPTIONS if guide is Amortised or not others else None
    return OF_JOINT if not others else None


def test_guides_that_write_more_than_their_base_expects_have_every_check() -> None:
    fewer = {name for name in NAMED if own_checks(name)}
    assert {"contextual", "flow", "swag"} <= fewer
    assert not fewer & {"mean_field", "rank_wise", "mc_dropout", "rank_gates", *WHOLE}


@pytest.mark.parametrize("name", NAMED)
def test_every_registered_guide(name: str) -> None:
    """On the first standard model that it serves."""
    for model, make in standard_models().items():
        try:
            Case(made(name), make, standard_batch()).build()
        except ConfigError:
            continue
        family = "full" if name in FULL else None
        report = check_guide(made(name), {model: make}, checks=own_checks(name), family=family).raise_if_failed()
        assert name not in KNOWN or report.of("conjugate")[0].outcome is Outcome.PASSED
        return
    raise AssertionError("no standard model is served: add a case of its own below")


@pytest.mark.parametrize(
    ("guide", "model", "family", "check"),
    [
        (MeanField, "A, global", "mean_field", "frozen"),
        (lambda m: MeanField(m, parameter="root"), "diagonal, global", "mean_field", "gradient"),
        (
            lambda m: RankWise(m, init_log_variance=-3.0, local_reparametrisation=True),
            "A, global",
            None,
            "training_noise",
        ),
    ],
    ids=["mean field", "root", "local reparametrisation"],
)
def test_families_reach_their_optimum(guide: Any, model: str, family: str | None, check: str) -> None:
    """And the one other check of what they have beside the guide of the test above, which has seen all."""
    checks = [check, "conjugate"]
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


@pytest.mark.parametrize("kind", ["real", "tasks"])
def test_targets_of_another_likelihood(kind: str) -> None:
    batch, source = standard_batch(), torch.Generator().manual_seed(0)
    numbers, words = torch.randn(batch.size, generator=source), torch.randint(3, (batch.size, 6), generator=source)
    targets: Any
    likelihood, targets = {
        "real": (Gaussian, numbers),
        "tasks": (lambda: Tasks({"word": Tagging(3), "number": Gaussian()}), {"word": words, "number": numbers}),
    }[kind]

    def model() -> Any:
        return StochasticCore(standard_backbone(), likelihood(), granularity="sequence", rank=2)

    checks = ["one_function", "padding", "scale", "cuts", "files"]  # those that look at targets
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
