"""What cannot be one ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bayes_adapters.errors import ConfigError, described


def require_several(members: Any) -> None:
    """Raise :class:`ConfigError` unless there are two (model, guide) pairs at least."""
    if not isinstance(members, Sequence):
        raise ConfigError(f"The members are a list of (model, guide) pairs; got {described(members)}. Pass list(…).")
    wrong = [member for member in members if not isinstance(member, tuple) or len(member) != 2]
    if len(members) < 2 or wrong:
        of = f", {described(wrong[0])} among them: write each as (model, guide)" if wrong else ""
        count = f"{len(members)} member{'s' * (len(members) != 1)}"
        fix = of or ", whose draws could not disagree. Train others from other seeds, or predict with that one alone"
        raise ConfigError(f"An ensemble is made of two or more (model, guide) pairs; got {count}{fix}.")
    same = next((n for n, own in enumerate(members) if any(_is_again(own, other) for other in members[:n])), None)
    if same is not None:
        raise ConfigError(
            f"Member {same} of {len(members)} is an earlier one again, so the two could not disagree. Was one model "
            "trained again in place? Train each member as a model of its own, on a copy of the backbone."
        )


def _is_again(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether two members have the same weights: guides of one model may lie at different values of its sites."""
    return one[0] is other[0] and (one[1] is other[1] or not getattr(one[0], "sites", ()))


def require_alike(
    members: Sequence[tuple[Any, Any]], weights: str, linear: bool, fingerprint: Callable[[nn.Module], Any]
) -> None:
    """Raise :class:`ConfigError` unless all that is not a member's own is the same in all of them.

    Args:
        members: (model, guide) pairs.
        weights: which weights are a member's own.
        linear: whether its head's are, too.
        fingerprint: of a frozen backbone.
    """
    first = members[0][0]
    for number, (model, _) in enumerate(members[1:], 1):
        same = type(model.likelihood) is type(first.likelihood) and type(model.head) is type(first.head)
        shapes = [(m.alpha, m.rank, m.ranks, m.layers, m.head.config(), m.likelihood.config()) for m in (model, first)]
        if not same or shapes[0] != shapes[1]:
            raise ConfigError(
                f"Member {number} differs from member 0 in likelihood, head, layers, rank, alpha or pruned ranks: "
                f"{type(model).__name__} with rank {model.rank}, alpha {model.alpha:g}, {type(model.head).__name__}, "
                f"{type(model.likelihood).__name__}. An ensemble on one backbone has one shape."
            )
        if model.backbone is not first.backbone and fingerprint(model.backbone) != fingerprint(first.backbone):
            raise ConfigError(f"Member {number} is on another backbone than member 0; their frozen weights differ.")
        sites = [{site.name: site.shape for site in m.sites} for m in (model, first)]
        if weights == "sites" and (type(model) is not type(first) or sites[0] != sites[1]):
            raise ConfigError(
                f"With weights='sites' the members have the same random sites; member {number}, a "
                f"{type(model).__name__}, has {sites[0]} and member 0, a {type(first).__name__}, has {sites[1]}. Take "
                "members of one structure, or weights='factors'."
            )
        own = [] if linear and weights != "sites" else _different(model.head, first.head, "head.")
        own += _different(model, first, "") if weights == "sites" else []
        if own:
            raise ConfigError(
                f"{own[0]!r} of member {number} is trained, is none of the weights that become random, and differs "
                "from member 0's. Take members with a LinearHead and weights='factors', or freeze it before training."
            )


def _different(model: nn.Module, first: nn.Module, prefix: str) -> list[str]:
    """Trained parameters with other values."""
    theirs = dict(first.named_parameters())
    return [
        prefix + name
        for name, p in model.named_parameters()
        if p.requires_grad and not torch.equal(p.cpu(), theirs[name].cpu())
    ]
