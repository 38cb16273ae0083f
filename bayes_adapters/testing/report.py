"""What checks of a guide found: one finding for each check, and the report of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bayes_adapters.errors import BayesAdaptersError, unknown_name


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It does not apply to this guide, or what it rests on has failed; ``Finding.found`` says which."""


class CheckError(BayesAdaptersError, AssertionError):
    """A check found a fault. Its message says what was found, what is right, and the likely cause.

    Args:
        found: what the guide does, with numbers.
        right: what it should do.
        cause: the likely cause, and where to mend it.
    """

    def __init__(self, found: str, right: str, cause: str) -> None:
        super().__init__(f"Found: {found} Right: {right} Likely cause: {cause}")
        self.found, self.right, self.cause = found, right, cause


class NotApplicableError(BayesAdaptersError):
    """A check has nothing to say of this guide; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What one check found in one case.

    Args:
        check: name of the check.
        case: name of the case: the model that the guide was built for.
        outcome: passed, failed or skipped.
        found: what was seen, with numbers; of a skipped check why it was.
        right: of a failed check, what should be.
        cause: of a failed check, the likely cause.
    """

    check: str
    case: str
    outcome: Outcome
    found: str
    right: str = ""
    cause: str = ""

    def __str__(self) -> str:
        mark = {Outcome.PASSED: "ok  ", Outcome.FAILED: "FAIL", Outcome.SKIPPED: "skip"}[self.outcome]
        lines = [f"{mark} {self.case}: {self.check}: {self.found}"]
        lines += [f"     {name}: {text}" for name, text in (("right", self.right), ("cause", self.cause)) if text]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """All findings of :func:`bayes_adapters.testing.check_guide`; printing it shows them, the failed ones first.

    Args:
        findings: in the order in which the checks ran.

    >>> report = Report((Finding("kl", "core", Outcome.PASSED, "1e-7 off."),))
    >>> report.ok, print(report)
    1 passed, 0 failed, 0 skipped
    ok   core: kl: 1e-7 off.
    (True, None)
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[Finding]:
        """The findings of checks that failed."""
        return [finding for finding in self.findings if finding.outcome is Outcome.FAILED]

    def of(self, check: str) -> list[Finding]:
        """Return the findings of one check, one for each case.

        Raises:
            ConfigError: no check of this name ran.
        """
        found = [finding for finding in self.findings if finding.check == check]
        if not found:
            raise unknown_name("check", check, {finding.check for finding in self.findings})
        return found

    def raise_if_failed(self) -> Report:
        """Return the report, so that a test is one line.

        Raises:
            CheckError: a check failed; the message has the whole of every failed finding.
        """
        if self.ok:
            return self
        first = self.failed[0]
        error = CheckError(first.found, first.right, first.cause)
        error.args = (
            f"{len(self.failed)} of {len(self.findings)} checks failed.\n" + "\n".join(map(str, self.failed)),
        )
        raise error

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        counts = {kind: sum(f.outcome is kind for f in self.findings) for kind in Outcome}
        order = [Outcome.FAILED, Outcome.PASSED, Outcome.SKIPPED]
        head = f"{counts[Outcome.PASSED]} passed, {counts[Outcome.FAILED]} failed, {counts[Outcome.SKIPPED]} skipped"
        return "\n".join([head, *map(str, sorted(self.findings, key=lambda f: order.index(f.outcome)))])
