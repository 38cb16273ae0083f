"""What an agent does with an answer, by how sure it is: a threshold at a stated risk, and what is done beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis._conformal_checks import require_part
from bayes_adapters.analysis.selection import selective
from bayes_adapters.errors import choice, positive_number
from bayes_adapters.generation._checks import require_one_uncertainty, require_thresholds
from bayes_adapters.generation.generation import Generation
from bayes_adapters.likelihoods.prediction import PARTS, Prediction


class Action(StrEnum):
    """What is done with an answer."""

    ANSWER = "answer"
    """It is given."""
    ABSTAIN = "abstain"
    """It is withheld."""
    ASK = "ask"
    """The question goes back for another attempt, or to a person."""
    TOOL = "tool"
    """A tool answers in its place."""


@dataclass(frozen=True)
class Guard:
    """Answer where the uncertainty is at most ``threshold``, and do something else beyond it.

    Formula: u ≤ threshold: answer. threshold < u ≤ ``limit``: ``between``. u > limit: ``beyond``. u is a part of the
    uncertainty, nats: of a prediction per example, of a generation the mean over a text's tokens.

    Args:
        threshold: t, nats; −∞ answers nothing.
        risk: what :meth:`fit` promises of t; None where it was set by hand.
        part: ``"total"``, ``"aleatoric"`` or ``"epistemic"``.
        beyond: what is done past ``limit``, or past t where there is no limit.
        limit, between: a second threshold, nats, and what is done up to it.
        coverage: the share of the calibration answers that were answered; None where t was set by hand.
        error: their mean error; None where t was set by hand.

    >>> import torch
    >>> u = torch.tensor([0.1, 0.4, 0.9])
    >>> said = Prediction(torch.full((3,), 0.8), u, u, 0 * u, num_samples=1)
    >>> [str(action) for action in Guard(0.3, limit=0.5, between="tool")(said)]
    ['answer', 'tool', 'abstain']
    """

    threshold: float
    risk: float | None = None
    part: str = "total"
    beyond: Action | str = Action.ABSTAIN
    limit: float | None = None
    between: Action | str = Action.ASK
    coverage: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        require_part(self.part, PARTS)
        for name in ("beyond", "between"):
            object.__setattr__(self, name, choice(Action, name, getattr(self, name)))
        if self.limit is not None:
            positive_number("limit", self.limit)
        require_thresholds(self.threshold, self.limit)

    @classmethod
    def fit(
        cls,
        said: Prediction | Generation,
        wrong: Tensor,
        *,
        risk: float = 0.1,
        part: str = "total",
        beyond: Action | str = Action.ABSTAIN,
        limit: float | None = None,
        between: Action | str = Action.ASK,
    ) -> Guard:
        """Return the guard with ``P(answered and wrong) ≤ risk`` for answers exchangeable with these.

        t is found by conformal risk control, see :func:`bayes_adapters.analysis.selection.selective`. ``coverage`` and
        ``error`` of the calibration answers stand beside it; nothing is promised about the error among those answered.

        Args:
            said: of n held-out examples or prompts.
            wrong: shape (n,), bool, or a loss from 0 to 1.
            risk: the share of all answers that may be given and wrong.
            part: of the uncertainty.
            beyond: of the guard.
            limit: of the guard.
            between: of the guard.

        Raises:
            ConfigError: an option out of range, or uncertainty of tokens.
            DataError: fewer than 1/risk − 1 examples, shapes that do not fit, NaN, or a loss out of range.

        >>> import torch
        >>> u = torch.arange(20.0)
        >>> said = Prediction(torch.full((20,), 0.8), u, u, 0 * u, num_samples=1)
        >>> guard = Guard.fit(said, u > 14, risk=0.1)
        >>> guard.threshold, guard.coverage, sum(action == "answer" for action in guard(said))
        (15.0, 0.8, 16)
        """
        require_part(part, PARTS)
        found = selective(uncertainty_of(said, part), wrong, risk=risk)
        return cls(found.threshold, risk, part, beyond, limit, between, found.coverage, found.error)

    def __call__(self, said: Prediction | Generation) -> list[Action]:
        """Return what to do with each answer."""
        return [self._action(u) for u in uncertainty_of(said, self.part).tolist()]

    def _action(self, uncertainty: float) -> Action:
        if uncertainty <= self.threshold:
            return Action.ANSWER
        within = self.limit is not None and uncertainty <= self.limit
        return Action(self.between if within else self.beyond)


def uncertainty_of(said: Prediction | Generation, part: str) -> Float[Tensor, " n"]:
    """Return a part of the uncertainty, nats: of each example, or of each text the mean over its tokens.

    Raises:
        ConfigError: there is one per token.
    """
    if isinstance(said, Generation):
        return said.mean(part)
    return require_one_uncertainty(getattr(said, part), part)
