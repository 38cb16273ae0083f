"""What heads of two embeddings refuse, and what refuses likelihoods that compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from bayes_adapters.conditions import refuse_where
from bayes_adapters.errors import ConfigError, DataError, unknown_name
from bayes_adapters.likelihoods import Likelihood


def require_one_side(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` where a likelihood compares two embeddings and the head would mix the two sides."""
    if likelihood.two_sides:
        raise ConfigError(
            f"{type(likelihood).__name__} compares two embeddings that must not see each other, and {head} makes all "
            "outputs from all features. Take ConcatLoRA or ConcatCore on an nn.ModuleDict of encoders, which have the "
            "head TwoTowers; or score pairs, with the likelihood Candidates."
        )


def require_two_sides(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the likelihood takes two embeddings."""
    if not likelihood.two_sides:
        raise ConfigError(
            f"{head} makes two embeddings, and {type(likelihood).__name__} does not compare any. Take "
            "Contrastive(dim), or another head, such as LinearHead()."
        )


def sides_of(head: str, first: Sequence[str] | None, backbone: nn.Module, width: int, widths: Mapping[str, int]) -> Any:
    """Return the names of the encoders on the first side and of those on the second.

    Args:
        head: its name.
        first: names, or None for one of two encoders.
        backbone: the encoders.
        width: d, of the features that the structure gives.
        widths: encoder → width of its hidden states.

    Raises:
        ConfigError: there are no encoders, ``first`` names none or all of them, or the features are no hidden states
            side by side.
    """
    names = list(widths)
    if len(names) < 2 or sum(widths.values()) != width:
        raise ConfigError(
            f"{head} takes the outputs of two or more encoders side by side; it got {width} features of a "
            f"{type(backbone).__name__} whose encoders are {dict(widths)} wide. Take ConcatLoRA or ConcatCore with "
            "backbone=nn.ModuleDict({'text': ..., 'audio': ...}); score pairs of other models, with the likelihood "
            "Candidates."
        )
    if first is None and len(names) > 2:
        raise ConfigError(
            f"There are {len(names)} encoders, {names}: say which of them make the first embedding, "
            f"{head}(first=[{names[0]!r}]); the others make the second."
        )
    chosen = names[:1] if first is None else list(first)
    for name in chosen:
        if name not in names:
            raise unknown_name("encoder", str(name), names)
    rest = [name for name in names if name not in chosen]
    if not chosen or not rest:
        raise ConfigError(f"first must name some of the encoders {names}, and not all of them; got {chosen}.")
    return [name for name in names if name in chosen], rest


def require_both_sides(lacking: Mapping[str, Tensor], size: int) -> None:
    """Raise :class:`DataError` where pairs of a batch with targets lack a side.

    Args:
        lacking: names of a side's encoders → shape (B,), True where an example has inputs of none of them.
        size: B.
    """
    for names, missing in lacking.items():
        refuse_where(missing, partial(_lacks, names, missing, size))


def _lacks(names: str, missing: Tensor, size: int) -> DataError:
    return DataError(
        f"{int(missing.sum())} of {size} pairs have no input of {names}, rows "
        f"{missing.nonzero().flatten()[:8].tolist()}: nothing would be compared but a learned null vector. Leave such "
        "rows out of training; to embed one side alone, leave out targets, or take similarities()."
    )


def require_apart(names: Sequence[str], alike: Bool[Tensor, "B B"], targets: Any) -> None:
    """Raise :class:`DataError` where rows with equal inputs of a side are declared to be of different groups.

    Args:
        names: the side's encoders.
        alike: which rows have equal inputs.
        targets: numbers of groups, int64 (B,).
    """
    bad = alike & (targets[:, None] != targets[None, :])
    refuse_where(bad, partial(_duplicates, " and ".join(names), bad, targets))


def _duplicates(names: str, bad: Tensor, targets: Tensor) -> DataError:
    rows = bad.any(1).nonzero().flatten().tolist()[:8]
    return DataError(
        f"Rows {rows} have the same input of {names} as another row and other groups, {targets[rows].tolist()}: each "
        "would count as a wrong partner of the other. Give duplicates one number: of equal texts, for example, "
        "torch.unique(ids, dim=0, return_inverse=True)[1] over the whole data set."
    )
