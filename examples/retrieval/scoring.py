"""Scores of every recording with every script by dual encoders, and of lists that a pair scorer ranks again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayes_adapters import Batch, predict
from bayes_adapters.inference import similarities
from bayes_adapters.likelihoods import Candidates
from examples.retrieval.data import Lists, Split, Task
from examples.retrieval.ridge import means, ridge_scores, states
from examples.retrieval.training import Trained, beside

AT_ONCE = 64
POOLS = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Weights of a pair scorer beside the dual encoder's score."""
_BELOW = 10.0  # nats by which candidates that are not ranked again stand below those that are
_SURE = 1e-6  # of a Bernoulli's probability, where its logit is read from it


class Scored(NamedTuple):
    """S draws of Q queries' lists of g scripts, float64.

    Args:
        score: how well each fits by itself, (S, Q, g): what a threshold is put on.
        log_probs: of each being the right one, given that one is, (S, Q, g).
    """

    score: Float[Tensor, "S Q g"]
    log_probs: Float[Tensor, "S Q g"]

    @property
    def mean(self) -> Float[Tensor, "Q g"]:
        """The mean score, which orders candidates."""
        return self.score.mean(0)

    @property
    def probs(self) -> Float[Tensor, "Q g"]:
        """The average over draws."""
        return self.log_probs.exp().mean(0)


def dual_scores(
    task: Task, trained: Trained, split: Split, conditions: Sequence[str], samples: int
) -> dict[str, Float[Tensor, "S Q M"]]:
    """Return condition → scores of its recordings with all scripts of the split, draw by draw.

    Scripts are embedded once for all conditions, and draw s is the same function in all of them. Draws of an ensemble
    are its members'.
    """
    asked = {condition: split.rows(condition) for condition in conditions}
    asked = {condition: rows for condition, rows in asked.items() if rows}
    if not trained.members:
        said = states(task, split, split.scripts)
        heard = {c: means(split, rows, c) for c, rows in asked.items()}
        return {c: ridge_scores(trained.weight, said, own)[None] for c, own in heard.items()}
    queries = [Batch(task.audio_side(split, rows, [c] * len(rows))) for c, rows in asked.items()]
    gallery = Batch(task.text_side(split, split.scripts, trained.method.encoded))
    drawn = []
    for model, guide in trained.members:
        count = samples if trained.method.random and len(trained.members) == 1 else 1
        found = similarities(model, guide, queries, gallery, num_samples=count, seed=trained.seed, return_samples=True)
        assert found.samples is not None
        drawn.append(found.samples.cpu())
    sizes = [len(rows) for rows in asked.values()]
    return dict(zip(asked, torch.cat(drawn).split(sizes, 1), strict=True))


def of_lists(scores: Float[Tensor, "S n M"], which: Lists, rows: Sequence[int]) -> Scored:
    """Return the lists' part of a dual encoder's scores; ``rows`` are the recordings of the scores."""
    place = {row: number for number, row in enumerate(rows)}
    own = scores[:, [place[row] for row in which.rows]].double()
    own = own.gather(-1, which.scripts.expand(len(own), -1, -1))
    return Scored(own, own.log_softmax(-1))


class Again(NamedTuple):
    """A list's first candidates, and what a pair scorer says of them.

    Args:
        top: T, their places in the list, int64 (Q, k).
        score: f, shape (S, Q, k), float64.
    """

    top: Int[Tensor, "Q k"]
    score: Float[Tensor, "S Q k"]


def scored_again(
    task: Task,
    trained: Trained,
    split: Split,
    asked: Mapping[str, Sequence[Lists]],
    first: Mapping[str, Sequence[Scored]],
    again: int,
    samples: int,
) -> dict[str, list[Again]]:
    """Let a pair scorer score the first candidates of lists.

    Args:
        task: the data.
        trained: the pair scorer.
        split: whose lists these are.
        asked: condition → lists.
        first: condition → what the dual encoder says of each, one draw.
        again: k.
        samples: posterior draws.
    """
    tops = {c: [one.mean.topk(min(again, one.mean.shape[1]), -1).indices for one in first[c]] for c in asked}
    found: dict[str, list[Again]] = {}
    for condition, some in asked.items():
        pairs: dict[tuple[int, int], int] = {}
        for which, top in zip(some, tops[condition], strict=True):
            for row, own in zip(which.rows, which.scripts.gather(1, top).tolist(), strict=True):
                for group in own:
                    pairs.setdefault((row, group), len(pairs))
        scores = _of_pairs(task, trained, split, list(pairs), condition, samples)
        found[condition] = []
        for which, top in zip(some, tops[condition], strict=True):
            groups = which.scripts.gather(1, top).tolist()
            place = [[pairs[row, g] for g in own] for row, own in zip(which.rows, groups, strict=True)]
            found[condition].append(Again(top, scores[:, torch.tensor(place)]))
    return found


def pooled(first: Scored, again: Again, weight: float) -> Scored:
    """Return both together, a log-linear pool (Genest & Zidek 1986).

    With s the dual encoder's score, p its probability, f the pair scorer's score and T the first candidates::

        P(c) = P(T) softmax_{c in T} (s_c + w f_c)  for c in T,     P(c) = p_c  otherwise

    w = 0 is the dual encoder. The score of the others, which a threshold and the order see, lies below that of all in
    T, in their old order.
    """
    draws = len(again.score)
    where = again.top.expand(draws, -1, -1)
    old, logs = first.mean.expand(draws, -1, -1), first.probs.log().expand(draws, -1, -1)
    fine = old.gather(-1, where) + weight * again.score
    whole = logs.gather(-1, where).logsumexp(-1, keepdim=True)
    log_probs = logs.scatter(-1, where, whole + fine.log_softmax(-1))
    least = old.gather(-1, where).amin(-1, keepdim=True)
    below = fine.amin(-1, keepdim=True) - _BELOW + (old - least).clamp(max=0.0)
    return Scored(below.scatter(-1, where, fine), log_probs)


def pool_weight(first: Scored, again: Again, right: Int[Tensor, " Q"]) -> float:
    """Return the one of :data:`POOLS` with the lowest NLL; of equal ones the smallest."""

    def nll(weight: float) -> float:
        probs = pooled(first, again, weight).probs
        return -float(probs.gather(-1, right[:, None]).clamp_min(1e-300).log().mean())

    return min(POOLS, key=nll)


def _of_pairs(
    task: Task, trained: Trained, split: Split, pairs: Sequence[tuple[int, int]], condition: str, samples: int
) -> Float[Tensor, "S n"]:
    """Return the scores of pairs: of lists those of ``Candidates``, otherwise the log-odds of a ``Bernoulli``."""
    ((model, guide),) = trained.members
    method, length = trained.method, [len(split.tokens[row]) for row in split.scripts]
    order = sorted(range(len(pairs)), key=lambda number: length[pairs[number][1]])
    parts = []
    for start in range(0, len(order), AT_ONCE):
        rows, groups = zip(*(pairs[number] for number in order[start : start + AT_ONCE]), strict=True)
        batch = beside(task, split, rows, groups, [condition] * len(rows), method)
        own: dict[str, Any] = {"num_samples": samples if method.random else 1, "seed": trained.seed}
        if isinstance(model.likelihood, Candidates):  # one list, of which nothing is known: scores are asked for
            unknown = torch.stack([torch.zeros(len(rows)), torch.full((len(rows),), -100.0)], -1).long()
            batch = Batch(batch.inputs, unknown, batch.context, batch.index)
        said = predict(model, guide, batch, return_samples=True, **own).samples
        assert said is not None
        drawn = said.double().cpu()
        parts.append(drawn if isinstance(model.likelihood, Candidates) else torch.logit(drawn, eps=_SURE))
    whole = torch.cat(parts, 1)
    back = torch.tensor(order).argsort()
    return whole[:, back]


def nearest(task: Task, dual: Trained, split: Split, count: int) -> Int[Tensor, "n k"]:
    """Return the wrong scripts that a dual encoder finds nearest to each clean recording."""
    found = dual_scores(task, dual, split, ["clean"], 1)["clean"].mean(0)
    own = split.groups[:, None] == torch.arange(found.shape[1])
    return found.masked_fill(own, -math.inf).topk(min(count, found.shape[1] - 1), -1).indices
