"""A fault in a guide turns the check red that is about it, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField, RankWise
from bayes_adapters.testing import CHECKS, Case, CheckError, Outcome, check_guide, standard_batch, standard_models
from tests.refusals import refuses
from tests.testing import broken

GLOBAL, TOKEN, DOWN = "core, global", "core, token", "A, global"
FAULTS: list[tuple[Any, str, str, str]] = [
    (broken.HalfKL, GLOBAL, "kl", "register_kl"),
    (broken.WideDraws, GLOBAL, "density", "rsample()"),
    (broken.KLPerBatch, GLOBAL, "scale", "once per batch"),
    (broken.OtherPrior, GLOBAL, "conjugate", "log p(y)"),
    (broken.PaddingKL, TOKEN, "padding", "mask"),
    (broken.BatchRead, TOKEN, "one_function", "other examples"),
    (broken.ParticleRead, TOKEN, "cuts", "particles"),
    (broken.TokenNoise, GLOBAL, "one_function", "hook"),
    (broken.RanklessNoise, DOWN, "training_noise", "rank"),
    (broken.Thaws, GLOBAL, "frozen", "requires_grad_"),
    (broken.Unsaved, GLOBAL, "files", "register_buffer"),
    (broken.OwnGenerator, GLOBAL, "repeatable", "Generator"),
    (broken.Detached, GLOBAL, "gradient", "detached"),
]
ALONE: list[tuple[Any, str, str, str]] = [
    (broken.WrongInverse, GLOBAL, "density", "icdf"),
    (broken.Unnormalised, GLOBAL, "density", "integrates"),
    (broken.ScaledKL, TOKEN, "scale", "msg['scale']"),
    (broken.PaddingRead, TOKEN, "padding", "token_mask"),
    (broken.TokenNoiseInTraining, GLOBAL, "one_function", "per token"),
    (broken.Moves, GLOBAL, "frozen", "writes"),
    (broken.Switches, GLOBAL, "frozen", "mode"),
    (lambda m: broken.Forgetful(m, square=False), GLOBAL, "files", "config()"),
    (broken.Stray, GLOBAL, "gradient", "nn.Parameter"),
]
"""Other faults of the same kinds: the check alone."""


@pytest.mark.parametrize(("guide", "model", "check", "fact"), FAULTS)
def test_exactly_the_right_check_goes_red(guide: Any, model: str, check: str, fact: str) -> None:
    report = check_guide(guide, {model: standard_models()[model]})
    assert [finding.check for finding in report.failed] == [check], str(report)
    assert fact in str(report.failed[0])


@pytest.mark.parametrize(("guide", "model", "check", "fact"), ALONE)
def test_a_check_alone_raises(guide: Any, model: str, check: str, fact: str) -> None:
    with pytest.raises(CheckError) as raised:
        CHECKS[check].run(Case(guide, standard_models()[model], standard_batch()))
    assert fact in str(raised.value)


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {check for _, _, check, _ in FAULTS} == set(CHECKS)


def test_what_rests_on_a_failed_check_is_skipped_and_says_so() -> None:
    report = check_guide(broken.WideDraws, {GLOBAL: standard_models()[GLOBAL]}, checks=["scale", "density", "kl"])
    assert [finding.outcome for finding in report] == [Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED]
    assert "'density'" in report.of("kl")[0].found
    with pytest.raises(CheckError) as raised:
        report.raise_if_failed()
    assert "log_prob" in str(raised.value)
    assert "1 of 3" in str(raised.value)


def test_an_error_in_a_check_is_a_finding() -> None:
    class Fails(MeanField):
        def posterior(self, call: Any, prior: Any) -> Any:
            raise ZeroDivisionError("by zero")

    report = check_guide(Fails, {GLOBAL: standard_models()[GLOBAL]}, checks=["kl", "gradient"])
    assert [finding.outcome for finding in report] == [Outcome.FAILED] * 2
    assert "ZeroDivisionError: by zero" in str(report)


def test_a_family_that_the_guide_does_not_hold() -> None:
    """One variance per rank is no mean field."""
    down = {DOWN: standard_models()[DOWN]}
    assert check_guide(RankWise, down, checks=["conjugate"]).ok
    report = check_guide(RankWise, down, checks=["conjugate"], family="mean_field")
    assert "optimum of 'mean_field'" in report.failed[0].found


def test_what_is_refused() -> None:
    with refuses(ConfigError, "'kll'", "'kl'"):
        check_guide(MeanField, checks=["kll"])
    with refuses(ConfigError, "make_guide", "str"):
        Case(lambda m: "guide", standard_models()[GLOBAL], standard_batch()).build()  # type: ignore[arg-type, return-value]
    with refuses(ConfigError, "targets"):
        Case(MeanField, standard_models()[GLOBAL], standard_batch().without_targets())
    with refuses(ConfigError, "none of the standard models", "make_model="):

        class Nothing(MeanField):
            serves = frozenset()

        check_guide(Nothing)


def test_the_kit_leaves_generators_as_they_were() -> None:
    before = torch.get_rng_state()
    check_guide(MeanField, {GLOBAL: standard_models()[GLOBAL]}, skip=["conjugate", "files"])
    assert torch.equal(before, torch.get_rng_state())
