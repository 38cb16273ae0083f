"""``check_guide``: every check on every model that a guide serves, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, unknown_name
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.testing.case import Case, MakeGuide, MakeModel, seeded, standard_batch, standard_models
from bayes_adapters.testing.conjugate import Family, check_conjugate
from bayes_adapters.testing.densities import check_density
from bayes_adapters.testing.files import check_files
from bayes_adapters.testing.frozen import check_frozen
from bayes_adapters.testing.functions import check_one_function
from bayes_adapters.testing.gradients import check_gradient
from bayes_adapters.testing.kl import check_kl
from bayes_adapters.testing.repeatable import check_repeatable
from bayes_adapters.testing.report import CheckError, Finding, NotApplicableError, Outcome, Report
from bayes_adapters.testing.scales import check_cuts, check_padding, check_scale
from bayes_adapters.testing.training_noise import check_training_noise

Check: TypeAlias = Callable[[Case], str]


@dataclass(frozen=True)
class NamedCheck:
    """A check, and the checks that it rests on: after a failure of one of those it would only repeat it.

    Args:
        run: the check.
        after: names of the checks it rests on.
    """

    run: Check
    after: tuple[str, ...] = ()


CHECKS: Mapping[str, NamedCheck] = {
    "frozen": NamedCheck(check_frozen),
    "repeatable": NamedCheck(check_repeatable),
    "one_function": NamedCheck(check_one_function, ("repeatable",)),
    "padding": NamedCheck(check_padding, ("repeatable", "one_function")),
    "scale": NamedCheck(check_scale, ("repeatable", "one_function", "padding")),
    "cuts": NamedCheck(check_cuts, ("repeatable", "one_function", "scale")),
    "density": NamedCheck(check_density, ("repeatable", "cuts")),
    "kl": NamedCheck(check_kl, ("repeatable", "density")),
    "gradient": NamedCheck(check_gradient, ("repeatable",)),
    "training_noise": NamedCheck(check_training_noise, ("repeatable", "one_function", "density")),
    "files": NamedCheck(check_files, ("frozen", "repeatable", "one_function")),
}
CHECKS = {**CHECKS, "conjugate": NamedCheck(check_conjugate, tuple(name for name in CHECKS if name != "files"))}
"""Name → check, in the order in which they run."""


@exclusive()  # it builds models, sets modes and runs Pyro's handlers, as predict does
def check_guide(
    make_guide: MakeGuide,
    make_model: MakeModel | Mapping[str, MakeModel] | None = None,
    batch: Batch | None = None,
    *,
    checks: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    family: Family | str | None = None,
    seed: int = 0,
) -> Report:
    """Run every check of :data:`CHECKS` on a guide, for each model that it serves.

    A check that rests on one that has failed is skipped, so that a fault shows once, where it is. Every statement is
    either exact or has a tolerance of at least 4.5 standard errors, and all draws have fixed seeds: the same guide
    gives the same report.

    Args:
        make_guide: model → guide, such as the guide's class. A guide that reads frames gets the modality ``audio`` of
            width :data:`bayes_adapters.testing.CONTEXT_WIDTH`, unless ``batch`` is given.
        make_model: makes a new model on a new backbone at each call, or name → such functions; None tries the small
            ones of :func:`standard_models`, and leaves out those that the guide refuses with :class:`ConfigError`.
        batch: for these models, with targets; None is :func:`standard_batch`.
        checks: names of the checks to run; None means all.
        skip: names of checks to leave out.
        family: for the check ``conjugate``: ``"mean_field"`` or ``"full"``, where the guide holds all such Gaussians.
        seed: of the parameters' start and of all draws.

    Returns:
        The report: ``print`` it, or call ``raise_if_failed()`` in a test.

    Raises:
        ConfigError: the guide serves no model, or a check's name is unknown.

    >>> from bayes_adapters import guides
    >>> report = check_guide(guides.Delta, checks=["frozen", "gradient"]).raise_if_failed()
    >>> report.ok, report.of("frozen")[0].case
    (True, 'core, token')
    """
    wanted = _wanted(checks, skip)
    if callable(make_model):
        make_model = {"model": make_model}
    batch = standard_batch() if batch is None else batch
    findings: list[Finding] = []
    refused: list[str] = []
    for name, make in (standard_models() if make_model is None else make_model).items():
        case = Case(make_guide, make, batch, name, seed)
        try:
            case.build()
        except ConfigError as error:
            refused.append(f"{name}: {error}")
            if make_model is not None:
                raise
            continue
        findings += _run(case, wanted, family)
    if not findings:
        raise ConfigError(
            "The guide can be built for none of the standard models; pass make_model=, a function that makes a model "
            "it serves. It said:\n" + "\n".join(refused)
        )
    return Report(tuple(findings))


def _wanted(checks: Iterable[str] | None, skip: Iterable[str]) -> list[str]:
    names, left_out = list(CHECKS) if checks is None else list(checks), set(skip)
    for name in [*names, *left_out]:
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS)
    return [name for name in CHECKS if name in names and name not in left_out]


def _run(case: Case, wanted: list[str], family: Family | str | None) -> list[Finding]:
    found: dict[str, Finding] = {}
    for name in wanted:
        check = CHECKS[name]
        broken = [other for other in check.after if other in found and found[other].outcome is Outcome.FAILED]
        if broken:
            found[name] = Finding(name, case.name, Outcome.SKIPPED, f"It rests on {broken[0]!r}, which has failed.")
            continue
        run = partial(check_conjugate, family=family) if name == "conjugate" else check.run
        try:
            with seeded(case.seed):
                found[name] = Finding(name, case.name, Outcome.PASSED, run(case))
        except CheckError as error:
            found[name] = Finding(name, case.name, Outcome.FAILED, error.found, error.right, error.cause)
        except NotApplicableError as error:
            found[name] = Finding(name, case.name, Outcome.SKIPPED, str(error))
        except Exception as error:  # noqa: BLE001 -- of a third party's code; the other checks still say what they see
            text = f"{type(error).__name__}: {error}"
            found[name] = Finding(name, case.name, Outcome.FAILED, text, "no error is raised.", "see the error's text.")
    return list(found.values())
