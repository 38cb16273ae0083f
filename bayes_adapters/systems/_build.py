"""Building a published system by its name."""

from __future__ import annotations

from typing import Any

from torch import nn

from bayes_adapters._options import unknown_option
from bayes_adapters.adapters.installation import require_unadapted, restored_on_error
from bayes_adapters.errors import ConfigError, described, unknown_name
from bayes_adapters.heads import Head
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.systems.procedures import PROCEDURES
from bayes_adapters.systems.system import MEANINGS, QUERY_VALUE, query_value, required
from bayes_adapters.systems.table import SYSTEMS


def names() -> list[str]:
    """Return the names of all systems, in the order of the table.

    >>> names()[:3]
    ['lora', 'mc-dropout', 'bayeslora-2025']
    """
    return list(SYSTEMS)


def build(
    name: str, backbone: nn.Module, likelihood: Likelihood, *, num_data: int | None = None, **overrides: Any
) -> tuple[AdapterModel, AdapterGuide]:
    """Build a system's model and guide on ``backbone``.

    ``fit(model, guide, data)`` trains them as the paper did: ``guide.recipe`` is ``SYSTEMS[name].training`` and gives
    what is not said. With ``recipe=None`` it minimises the ELBO, whose KL weight, 1, is far above that of most systems.

    Args:
        name: one of :func:`names`.
        backbone: frozen and changed in place; an ``nn.ModuleDict`` of encoders for cola, bayesian-cola and the wanders.
        likelihood: any.
        num_data: N, the size of the training set, which posteriors over weights need, those of a head among them.
        **overrides: options of the model or of the guide, such as ``rank``, ``targets`` or ``context_dim``; see
            :meth:`System.options`.

    Raises:
        ConfigError: an unknown system or option (near matches are listed), an option that is missing, or a combination
            that model or guide refuses. The backbone is then as it was.
    """
    if not isinstance(name, str):
        raise ConfigError(f"build() takes (name, backbone, likelihood); got {described(name)} as the name.")
    if name in PROCEDURES:
        raise ConfigError(f"{name!r} is no pair of a model and a guide: {PROCEDURES[name]}")
    if name not in SYSTEMS:
        raise unknown_name("system", name, [*SYSTEMS, *PROCEDURES])
    system = SYSTEMS[name]
    allowed = system.options()
    for option in overrides:
        if option not in allowed["model"] and option not in allowed["guide"]:
            raise unknown_option(name, option, {*allowed["model"], *allowed["guide"]})
    chosen = [
        {**defaults, **{k: v for k, v in overrides.items() if k in allowed[kind]}}
        for kind, defaults in (("model", system.model_options), ("guide", system.guide_options))
    ]
    if system.head is not None and chosen[0].get("head") is None:
        chosen[0]["head"] = system.head(pooling=chosen[0].pop("pooling", None))
    head = chosen[0].get("head")
    counted = isinstance(head, Head) and head.may_be_random  # the adapters of the system may have no KL that counts N
    if num_data is not None and ("num_data" in allowed["model"] or counted):
        chosen[0]["num_data"] = num_data
    missing = [o for cls, own in zip((system.model, system.guide), chosen, strict=True) for o in required(cls) - {*own}]
    if missing:
        meanings = "; ".join(f"{o}: {MEANINGS.get(o, 'see the docstring')}" for o in sorted(missing))
        raise ConfigError(f"{name} needs {', '.join(f'{o}=' for o in sorted(missing))} ({meanings}).")
    with restored_on_error(backbone):
        require_unadapted(backbone)
        if chosen[0].get("targets") == QUERY_VALUE:
            chosen[0]["targets"] = query_value(backbone)
        model = system.model(backbone, likelihood, **chosen[0])
        guide = system.guide(model, **chosen[1])
        guide.recipe = system.training
        return model, guide
