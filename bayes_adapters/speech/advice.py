"""What a verified pair's numbers mean, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

LOW = 0.05
"""The share of matching pairs that is remarkable: a pair that agrees no better than these does not belong together."""


def claim(probability: float) -> str:
    """Say the answer in a sentence.

    >>> claim(0.97)
    'Yes, this recording says the script (p = 0.97).'
    >>> claim(0.5)
    'Undecided: the recording may say the script or not (p = 0.50).'
    >>> claim(0.2)
    'Probably not: this recording does not seem to say the script (p = 0.20).'
    """
    p = f"(p = {probability:.2f})"
    if probability >= 0.9:
        return f"Yes, this recording says the script {p}."
    if probability > 0.6:
        return f"Probably yes: this recording seems to say the script {p}."
    if probability >= 0.4:
        return f"Undecided: the recording may say the script or not {p}."
    if probability > 0.1:
        return f"Probably not: this recording does not seem to say the script {p}."
    return f"No, this recording does not say the script {p}."


def advice(total: float, epistemic: float, thresholds: dict[str, float]) -> tuple[str, bool]:
    """Say whether to trust an answer, by comparing its uncertainty with that of validation pairs.

    Args:
        total: nats.
        epistemic: nats.
        thresholds: see :class:`VerifyTask`.

    Returns:
        A sentence, and whether both parts are within their 90 % quantiles and the total within ``total_risk10``.

    >>> limits = {"total_q90": 0.4, "total_q99": 0.6, "epistemic_q90": 0.02, "epistemic_q99": 0.05, "total_risk10": 0.3}
    >>> advice(0.1, 0.01, limits)
    ('Trust it: its uncertainty is within what was seen on validation recordings.', True)
    """
    reasons = {
        "epistemic": ("this recording or script is unlike the training data", epistemic),
        "total": ("recording and script leave the answer open", total),
    }
    for quantile, level, order in ((99, "99th", "Do not rely on it"), (90, "90th", "Check it by ear")):
        for part, (reason, value) in reasons.items():
            limit = thresholds[f"{part}_q{quantile}"]
            if not value <= limit:
                return (
                    f"{order}: its {part} uncertainty, {value:.2g} nats, is above the {level} percentile of validation "
                    f"recordings ({limit:.2g}): {reason}."
                ), False
    if not total <= thresholds["total_risk10"]:
        return (
            f"Check it by ear: its total uncertainty, {total:.2g} nats, is above {thresholds['total_risk10']:.2g}; "
            "only up to there were at most 10 % of the answers on validation recordings wrong."
        ), False
    return "Trust it: its uncertainty is within what was seen on validation recordings.", True


def beyond(value: float, part: str, limit: float | None, risk: float) -> str:
    """Say that an answer's uncertainty is above the threshold at a stated risk.

    >>> beyond(0.6, "total", 0.45, 0.1)
    'Check it by ear: its total uncertainty, 0.6 nats, is above 0.45: trusted further, over 10 % could be wrong.'
    """
    if limit is None:
        return f"Check it by ear: at a risk of {100 * risk:g} % no answer can be trusted."
    return (
        f"Check it by ear: its {part} uncertainty, {value:.2g} nats, is above {limit:.2g}: trusted further, over "
        f"{100 * risk:g} % could be wrong."
    )


def strangers(share: float) -> str:
    """Say that recording and script do not belong together.

    >>> strangers(0.018)
    'Check it by ear: recording and script do not seem to belong together; 1.8 % of matching pairs agree no better.'
    """
    return (
        "Check it by ear: recording and script do not seem to belong together; "
        f"{100 * share:.2g} % of matching pairs agree no better."
    )


def listed(answers: Sequence[str]) -> str:
    """Say which answers a set holds.

    >>> listed(["no", "yes"]), listed([])
    ('no or yes', 'neither: this pair is unlike the validation pairs')
    """
    return " or ".join(answers) or "neither: this pair is unlike the validation pairs"
