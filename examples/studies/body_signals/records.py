"""What a run of this benchmark leaves beside its records: what was said about every window, as CSV."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """What one method said about one window of an unseen person.

    ``condition`` is ``all`` or ``without-BVP+ACC``, the withheld streams in the order of the data; ``key`` is the
    window (``12/3`` is the fourth of person 12), ``group`` the person. Uncertainties are in nats.
    """

    method: str
    seed: int
    condition: str
    key: str
    group: str
    label: int
    probability: float
    total: float
    aleatoric: float
    epistemic: float
