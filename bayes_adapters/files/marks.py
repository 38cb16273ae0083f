"""What is remembered of a model that came from elsewhere: whether its head was trained, and its paths at PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.inference.model import AdapterModel

_NAME = "_marks"


@dataclass(frozen=True)
class Marks:
    """Notes on a model, kept as an attribute of it and in its saved description.

    Args:
        fresh_head: the values of the head's parameters at their start, if adapters that were trained elsewhere came
            without their head: as long as the head still has them, it answers at random.
        prefix: what stands before the backbone's paths in the model that PEFT has adapted, such as ``model.``, or
            nothing; None where PEFT has adapted none.
        task_type: PEFT's name of the task, such as ``CAUSAL_LM``.
        base: names of the backbone's tensors that the import has written into it.
    """

    fresh_head: tuple[Tensor, ...] | None = None
    prefix: str | None = None
    task_type: str | None = None
    base: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: AdapterModel) -> Marks:
        """Return the marks of ``model``, or empty ones."""
        found = vars(model).get(_NAME)
        return found if isinstance(found, Marks) else cls()

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> Marks:
        """Return what a saved description says; an untrained head's values are those that :meth:`put_on` finds."""
        peft = about.get("peft") or {}
        return cls(
            () if about.get("untrained_head") else None,
            peft.get("prefix"),
            peft.get("task_type"),
            tuple(about.get("written_into_base") or ()),
        )

    def put_on(self, model: AdapterModel) -> None:
        """Remember this of ``model``; an empty ``fresh_head`` stands for the values that its head has now."""
        values = tuple(p.detach().clone() for p in model.head.parameters()) if self.fresh_head == () else None
        vars(model)[_NAME] = self if values is None else replace(self, fresh_head=values)

    def to_json(self, *, fresh: bool) -> dict[str, Any]:
        """Return the entries of a saved description, none for a model that came from nowhere else.

        Args:
            fresh: what :func:`has_fresh_head` says.
        """
        known = self.prefix is not None or self.task_type is not None
        peft = {"prefix": self.prefix, "task_type": self.task_type}
        entries: dict[str, Any] = {"peft": peft} if known else {}
        entries |= {"written_into_base": list(self.base)} if self.base else {}
        return entries | ({"untrained_head": True} if fresh else {})


def has_fresh_head(model: AdapterModel) -> bool:
    """Whether the adapters of ``model`` were trained elsewhere, with another head, and its own has not been since."""
    start = Marks.of(model).fresh_head
    if start is None:
        return False
    now = list(model.head.parameters())
    return len(now) == len(start) and all(_same(p, old) for p, old in zip(now, start, strict=True))


@torch.no_grad()
def _same(now: nn.Parameter, start: Tensor) -> bool:
    return now.shape == start.shape and bool(torch.equal(now.cpu(), start.to("cpu", now.dtype)))
