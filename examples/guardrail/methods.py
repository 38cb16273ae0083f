"""The compared methods, on the same layers, rank and steps; each with the values that its paper or the ELBO says.

Nothing was searched here. ``bayeslora-2025`` draws ranks by dropout with its paper's p, ``mc-dropout`` drops inputs of
the adapters, ``blob`` has the prior N(0, .2²); ``bayeslora-2026``, which learns a rate for each rank, prunes them all
at the ELBO's KL weight, and has the one that was chosen for :mod:`examples.multiple_choice`, .3.
"""

from __future__ import annotations

from examples.generation.methods import METHODS as WRITERS
from examples.generation.methods import Method

METHODS: dict[str, Method] = {
    "lora": WRITERS["lora"],
    "ensemble": WRITERS["ensemble"],
    "mc-dropout": WRITERS["mc-dropout"],
    "bayeslora-2025": Method("bayeslora-2025"),
    "bayeslora-2026": Method("bayeslora-2026", kl_weight=0.3),
    "blob": WRITERS["blob"],
}
"""Name → method: the order of the tables."""
