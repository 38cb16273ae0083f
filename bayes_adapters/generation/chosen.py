"""The tokens that Hugging Face's ``generate`` has chosen, and where each text ends, noted as it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import StoppingCriteria

from bayes_adapters.generation._checks import require_one_run


class Chosen(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion, which ``generate`` asks after each token: it notes the token, and asks ``others``.

    A token counts until its row has ended: by one of ``ends``, or because one of ``others`` has stopped the row.

    Args:
        note: called with each step's tokens, shape (N,).
        ends: end-of-sequence tokens.
        others: criteria that end single rows: ``(input_ids, scores) → (N,)``, bool.
    """

    def __init__(self, note: Callable[[Tensor], None], ends: Sequence[int], others: Sequence[Any]) -> None:
        self.note, self.ends, self.others = note, list(ends), list(others)
        if any(hasattr(one, "eos_token_id") for one in others):
            self.eos_token_id = self.ends  # by which Hugging Face tells that rows which have ended are filled up
        self._ids: Tensor | None = None
        self._over: Tensor | None = None
        self._columns: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Bool[Tensor, " N"]:
        require_one_run(self._ids, input_ids)
        self._ids, tokens = input_ids, input_ids[:, -1]
        over = torch.zeros_like(tokens, dtype=torch.bool) if self._over is None else self._over
        self.note(tokens)
        self._columns.append((tokens, ~over))
        stopped = torch.zeros_like(over)
        for one in self.others:
            stopped = stopped | one(input_ids, scores, **options)
        self._over = over | stopped | torch.isin(tokens, tokens.new_tensor(self.ends))
        return stopped

    def within(self, sequences: Int[Tensor, "N L"]) -> tuple[Int[Tensor, "N T"], Bool[Tensor, "N T"]]:
        """Return the tokens that were written and which of them count, of what ``generate`` has returned.

        On a GPU it may look late whether all rows have ended, and then takes back what it wrote in the meantime.
        """
        columns, length = self._columns, sequences.shape[1]
        if self._ids is not None and torch.equal(self._ids[:, :length], sequences):
            columns = columns[: len(columns) - (self._ids.shape[1] - length)]
        if not columns:
            empty = sequences[:, :0]
            return empty, empty.bool()
        tokens, counts = (torch.stack(column, -1) for column in zip(*columns, strict=True))
        return tokens, counts
