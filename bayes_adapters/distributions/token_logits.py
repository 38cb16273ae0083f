"""Logits of the tokens of a sequence, made some tokens at a time, and the distribution of a text under them.

S draws of B texts of T tokens over a vocabulary of V words are S·B·T·V numbers: 67 GB in float64 for S = 8, B = 4,
T = 2,048 and V = 128,256. So what goes from the head to the likelihood are hidden states, and what makes logits of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from bayes_adapters.distributions.token_labels import IGNORED

AT_ONCE = 2**22
"""Logits that exist at one time, 16 MB of float32; at least those of one token of every row."""


@dataclass(frozen=True)
class TokenLogits:
    """Logits of S·B rows of T tokens, computed where they are asked for.

    Args:
        hidden: shape (rows, T, d): what ``project`` takes; rows are samples × examples, in the order [S, B].
        project: (rows, t, d) → logits (rows, t, V), token by token: any t of the tokens at a time.
        size: V.
        shift: places from the token whose logits predict to the token that is predicted: 1 where a model reads the text
            itself, so that the logits at t − 1 say what stands at t; 0 where a decoder reads a text that is shifted
            already.
        batch: (*S, B), whose product is rows.
    """

    hidden: Float[Tensor, "rows T d"]
    project: Callable[[Tensor], Tensor]
    size: int
    shift: int
    batch: tuple[int, ...]

    @classmethod
    def of(cls, logits: Float[Tensor, "rows T V"], shift: int, batch: tuple[int, ...]) -> TokenLogits:
        """Return logits that are there already."""
        return cls(logits, lambda those: those, logits.shape[-1], shift, batch)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*S, B, T, V)."""
        return (*self.batch, self.hidden.shape[1], self.size)

    def reshape(self, *shape: int) -> TokenLogits:
        """Return the same logits with another batch shape: ``shape`` is (*S, B, T, V)."""
        return replace(self, batch=tuple(shape[:-2]))

    def logits(self) -> Float[Tensor, "*S B T V"]:
        """Return all of them, as the model computes them: the logits at a token predict the one ``shift`` after it."""
        return self.project(self.hidden).reshape(self.shape)

    def at(self, places: Int[Tensor, "B n"]) -> TokenLogits:
        """Return the logits that predict the tokens at ``places`` of each example: n tokens, and no shift."""
        rows = (places - self.shift).clamp_min(0).repeat(len(self.hidden) // len(places), 1)
        each = torch.arange(len(rows), device=rows.device)[:, None]
        return replace(self, hidden=self.hidden[each, rows], shift=0)

    def chunks(self, at_once: int = AT_ONCE) -> Iterator[slice]:
        """Yield slices of the tokens, each with at most ``at_once`` logits where one token of all rows has no more."""
        step = max(1, at_once // (len(self.hidden) * self.size))
        for start in range(0, self.hidden.shape[1], step):
            yield slice(start, start + step)

    def log_probs(self, labels: Int[Tensor, "rows t"], tokens: slice) -> Float[Tensor, "rows t"]:
        """Return log p of ``labels`` at some tokens, float32; with gradients the logits are computed again for them."""

        def found(hidden: Tensor) -> Tensor:
            logits = self.project(hidden).float()
            return logits.gather(-1, labels[..., None])[..., 0] - logits.logsumexp(-1)

        part = self.hidden[:, tokens]
        if not torch.is_grad_enabled():
            return found(part)
        again: Tensor = checkpoint(found, part, use_reentrant=False)
        return again


def scored_places(scored: Bool[Tensor, "B T"]) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Return the places of each row's scored tokens, in order, and which of them are real: rows are filled up.

    >>> places, real = scored_places(torch.tensor([[False, True, True], [False, False, True]]))
    >>> places.tolist(), real.tolist()
    ([[1, 2], [2, 0]], [[True, True], [True, False]])
    """
    most = max(1, int(scored.sum(1).max()))
    places = torch.argsort(~scored, dim=1, stable=True)[:, :most]
    return places, scored.gather(1, places)


class NextTokens(TorchDistribution):
    """The text of a language model; given the logits and what came before, a token is independent of the others.

    Density: ``log p(y) = Σ_t [y_t ≠ −100, tokens t and t − shift are real] log softmax(f_{t − shift})[y_t]``, nats,
    computed some tokens at a time. With gradients the logits of a chunk are computed a second time on the way back,
    rather than kept.

    Args:
        logits: f.
        real: shape (B, T), True where a token is real; None where all are.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.integer_interval(IGNORED, 2**31 - 1), 1)

    def __init__(
        self,
        logits: TokenLogits,
        real: Bool[Tensor, "B T"] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.token_logits = logits
        length, hidden = logits.hidden.shape[1], logits.hidden
        every = torch.ones(logits.batch[-1], length, dtype=torch.bool, device=hidden.device)
        real = every if real is None else real.expand(every.shape)
        # Behind padding on the left, too, a text's first token follows none.
        after = real if logits.shift == 0 else torch.nn.functional.pad(real[:, : -logits.shift], (logits.shift, 0))
        self.real = real & after
        super().__init__(torch.Size(logits.batch), torch.Size([length]), validate_args=False)

    def scored(self, value: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Return which tokens of the texts ``value`` have a density."""
        return self.real & (value != IGNORED)

    def log_prob(self, value: Int[Tensor, "B T"]) -> Float[Tensor, "*S B"]:
        """Return the log density of texts, shape = batch shape."""
        places, real = scored_places(self.scored(value))
        few = self.token_logits.at(places)
        folds = len(few.hidden) // len(places)
        labels = torch.where(real, value.gather(1, places), 0).repeat(folds, 1)
        found = [few.log_probs(labels[:, tokens], tokens) for tokens in few.chunks()]
        each = torch.where(real.repeat(folds, 1), torch.cat(found, 1), 0.0)
        return each.sum(1).reshape(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> NextTokens:
        """Return the same texts with the same batch shape; rows of hidden states are not repeated."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"texts of batch shape {tuple(self.batch_shape)} have the rows of one pass")
        return self

    @torch.no_grad()
    def sample(self, sample_shape: Any = None) -> Int[Tensor, "*S B T"]:
        """Draw each token given the true ones before it, −100 where there is none to draw."""
        shape = torch.Size(sample_shape or ())
        places = torch.arange(self.event_shape[0], device=self.real.device).expand(self.real.shape)
        few = self.token_logits.at(places)
        count = shape.numel()
        drawn = []
        for tokens in few.chunks():
            logits = few.project(few.hidden[:, tokens]).float()
            flat = torch.multinomial(logits.softmax(-1).flatten(0, -2), count, replacement=True)
            drawn.append(flat.T.reshape(count, *logits.shape[:-1]))
        whole = torch.cat(drawn, -1).reshape(shape + self.batch_shape + self.event_shape)
        return torch.where(self.real, whole, IGNORED)
