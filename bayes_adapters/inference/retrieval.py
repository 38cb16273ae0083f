"""Every query against every candidate of a gallery: scores under the posterior, and what they leave open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.conditions import read_together
from bayes_adapters.data.batch import Batch
from bayes_adapters.data.pairs import all_pairs
from bayes_adapters.devices import float64
from bayes_adapters.errors import FoldError, integer
from bayes_adapters.heads.two_towers import TwoTowers, has_inputs, lacking
from bayes_adapters.inference._checks import named_non_finite
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._match_checks import require_comparing, require_gallery, require_own_side, require_side
from bayes_adapters.inference._sources import AnyGuide, Source, source_of
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.inference.predictive import checked_draws, draws_per_pass
from bayes_adapters.inference.tempering import temperature_of
from bayes_adapters.likelihoods import Bernoulli, Contrastive
from bayes_adapters.likelihoods._splits import class_prediction, class_sums
from bayes_adapters.likelihoods.prediction import Prediction

_ROWS = 256
"""Pairs of one pass, for models that score pairs."""


@dataclass(frozen=True)
class Similarities:
    """Q queries against G candidates, averaged over S draws, each of which is one function of all of them.

    Tensors are float32 and on the model's device.

    Args:
        mean: shape (Q, G): the average score: ``e^τ cos(u_q, v_g)``, or the pair's score; what ranks candidates.
        variance: shape (Q, G): ``1/(S−1) Σ_s (s − mean)²``, of the scores between draws; 0 where S = 1.
        match: the choice among all G candidates: ``match.probs`` (Q, G) is ``(1/S) Σ_s softmax_g(s)``; its total,
            aleatoric and epistemic, (Q,), nats, are of that choice.
        num_samples: S.
        samples: shape (S, Q, G): the scores of each draw; None unless asked for.
    """

    mean: Float[Tensor, "Q G"]
    variance: Float[Tensor, "Q G"]
    match: Prediction
    num_samples: int
    samples: Float[Tensor, "S Q G"] | None = None

    @property
    def probs(self) -> Float[Tensor, "Q G"]:
        """P(candidate g is q's partner), given that one of the G is."""
        return self.match.probs


@exclusive()
def similarities(
    model: AdapterModel,
    guide: AnyGuide,
    queries: Batch | Iterable[Any],
    gallery: Batch | Iterable[Any],
    *,
    num_samples: int | None = None,
    of_gallery: Iterable[str] | None = None,
    mean_only: bool = False,
    return_samples: bool = False,
    seed: int | None = 0,
    temperature: float | None = None,
) -> Similarities:
    """Score every query with every candidate under draws of the posterior.

    Two ways, by the model's likelihood. :class:`~bayes_adapters.likelihoods.Contrastive`: each side is embedded alone,
    once per draw, Q + G examples in all, and draw s of the queries is the same function as draw s of the gallery. A
    batch may hold that side's inputs only. :class:`~bayes_adapters.likelihoods.Candidates` and
    :class:`~bayes_adapters.likelihoods.Bernoulli`: the model scores pairs, Q · G rows per draw, so that models serve
    whose sides see each other; a Bernoulli's score is its logit, and ``match`` is then given that one candidate
    matches.

    The other direction, candidates that choose among queries, is the same call with the two swapped.

    Args:
        model: the model.
        guide: where draws come from, see :func:`bayes_adapters.predict`.
        queries: one batch, or batches of one data set in order; of the first side, or of the second.
        gallery: the candidates; of the other side. Its batches need not be as many as those of the queries.
        num_samples: S; None means 16, or all draws of a dictionary.
        of_gallery: of models that score pairs, see :func:`bayes_adapters.data.pairs.all_pairs`: the candidate's
            modalities.
        mean_only: one pass at the posterior's mean.
        return_samples: keep every draw's scores, S · Q · G numbers.
        seed: see :func:`bayes_adapters.predict`.
        temperature: likewise.

    Raises:
        ConfigError: the likelihood compares nothing, or nothing says which side a batch is of.
        DataError: no batch, one candidate only, or a batch without inputs of its side.

    >>> from torch import nn
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.models import ConcatCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> model = ConcatCore(encoders, Contrastive(4), num_data=100, rank=2)
    >>> questions = Batch({"question.input_ids": torch.tensor([[3, 5], [7, 2]])})
    >>> answers = Batch({"answer.input_ids": torch.tensor([[4], [6], [8]])})
    >>> found = similarities(model, MeanField(model), questions, answers, num_samples=3, return_samples=True)
    >>> found.samples.shape, found.probs.shape, found.match.epistemic.shape
    (torch.Size([3, 2, 3]), torch.Size([2, 3]), torch.Size([2]))
    """
    guide, samples = checked_draws(model, guide, num_samples, 16)
    require_comparing(model.likelihood)
    seed = None if seed is None else integer("seed", seed)
    source = source_of(model, guide, mean_only, seed, None, temperature_of(guide, temperature))
    samples = 1 if mean_only else samples
    ours, theirs = _numbered(queries, "queries", model), _numbered(gallery, "gallery", model)
    require_gallery(ours, theirs)
    modules = [part for part in (model, guide) if isinstance(part, torch.nn.Module)]
    with torch.no_grad(), evaluating(*modules), named_non_finite(*modules):
        if isinstance(model.likelihood, Contrastive):
            scores = _of_sides(model, source, ours, theirs, samples)
        else:
            scores = _of_pairs(model, source, ours, theirs, samples, of_gallery)
        return _averaged(*scores, samples, return_samples, next(model.parameters()).device)


def _numbered(data: Batch | Iterable[Any], which: str, model: AdapterModel) -> list[Batch]:
    """Return the batches without targets, on the model's device, their examples numbered."""
    device, offset, out = next(model.parameters()).device, 0, []
    for batch in [data] if isinstance(data, Batch) else data:
        require_side(batch, which)
        own = batch.without_targets().to(device)
        out.append(own if batch.index is not None else replace(own, index=own.ids + offset))
        offset += batch.size
    return out


Scores = tuple[Callable[[int], Float[Tensor, "Q G"]], int]
"""The number of a draw → its scores; and how many draws there are: one where nothing is random."""


def _of_sides(model: AdapterModel, source: Source, queries: list[Batch], gallery: list[Batch], samples: int) -> Scores:
    head = model.head
    assert isinstance(head, TwoTowers)  # no other head serves the likelihood

    def has(batch: Batch, side: int) -> bool:
        return any(has_inputs(batch.inputs, name) for name in head.sides[side])

    first = 0 if has(queries[0], 0) and has(gallery[0], 1) else 1
    u = _embedded(model, source, queries, first, samples, "queries")
    v = _embedded(model, source, gallery, 1 - first, samples, "gallery")
    scale = model.likelihood.scale.detach()  # type: ignore[operator]
    return lambda s: scale * u[min(s, len(u) - 1)] @ v[min(s, len(v) - 1)].mT, max(len(u), len(v))


def _embedded(
    model: AdapterModel, source: Source, data: list[Batch], side: int, samples: int, which: str
) -> Float[Tensor, "S n d"]:
    """Return the embeddings of one side, in every draw; of one draw only where all are alike."""
    names, parts = cast("TwoTowers", model.head).sides[side], []
    for batch in data:
        own = {key: value for key, value in batch.inputs.items() if key.partition(".")[0] in names}
        require_side(batch, which, names, any(has_inputs(own, name) for name in names))
        require_own_side(which, names, lacking(batch, names))
        parts.append(_drawn(model, source, replace(batch, inputs=own), samples, lambda fn: (fn.first, fn.second)[side]))
    return _side_by_side(parts, 1)


def _of_pairs(
    model: AdapterModel,
    source: Source,
    queries: list[Batch],
    gallery: list[Batch],
    samples: int,
    of_gallery: Iterable[str] | None,
) -> Scores:
    named = None if of_gallery is None else list(of_gallery)
    logits = isinstance(model.likelihood, Bernoulli)
    stride, rows = 1 + max(int(batch.ids.max()) for batch in gallery), []
    for batch in queries:
        step = max(1, _ROWS // max(part.size for part in gallery))
        for start in range(0, batch.size, step):
            some, columns = batch[start : start + step], []
            for candidates in gallery:
                index = (some.ids[:, None] * stride + candidates.ids).flatten()
                pairs = replace(all_pairs(some, candidates, named), targets=None, index=index)
                drawn = _drawn(model, source, pairs, samples, lambda fn: fn.logits if logits else fn.scores)
                columns.append(drawn.float().reshape(-1, some.size, candidates.size).cpu())
            rows.append(_side_by_side(columns, -1))
    scores = _side_by_side(rows, -2)
    return scores.__getitem__, len(scores)


def _side_by_side(parts: list[Tensor], dim: int) -> Tensor:
    most = max(len(part) for part in parts)
    return torch.cat([part.expand(most, -1, -1) for part in parts], dim)


def _drawn(
    model: AdapterModel, source: Source, batch: Batch, samples: int, read: Callable[[Any], Tensor]
) -> Float[Tensor, "S B *d"]:
    """Return what ``read`` takes from p(y | draw), for every draw; one draw where nothing is random."""
    with read_together():
        model.accept(batch)
    chunk, drawn = draws_per_pass(model, batch), []
    start, last = 0, samples if source.is_random(batch) else 1
    while start < last:
        numbers = torch.arange(start, min(start + chunk, last), device=batch.ids.device)
        try:
            fn, random = source.outcome(batch, numbers, batch.ids)
        except FoldError:
            if chunk == 1:
                raise
            chunk = 1
            continue
        drawn.append(read(fn))
        start, last = start + len(numbers), samples if random else last
    return torch.cat(drawn)


def _averaged(
    scores: Callable[[int], Tensor], count: int, samples: int, keep: bool, device: torch.device
) -> Similarities:
    """Average ``count`` draws, which stand for all ``samples`` where it is one."""
    mean: Any = 0.0
    spread: Any = 0.0
    sums: dict[str, Tensor] = {}
    kept: list[Tensor] = []
    for s in range(count):
        own = scores(s)
        step = float64(own) - mean
        mean = mean + step / (s + 1)
        spread = spread + step * (float64(own) - mean)
        for name, value in class_sums(own.softmax(-1)[None]).items():
            sums[name] = sums[name] + value if name in sums else value
        kept += [own] if keep else []
    match = replace(class_prediction(sums, count), num_samples=samples).to(device)
    whole = torch.stack(kept).expand(samples, -1, -1).clone().to(device) if keep else None
    variance = spread / max(count - 1, 1)
    return Similarities(mean.float().to(device), variance.float().to(device), match, samples, whole)
