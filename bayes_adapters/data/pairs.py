"""Every query with every candidate, as rows of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.data._pair_checks import require_modalities, require_numbers, require_one_kind
from bayes_adapters.data.batch import Batch


def all_pairs(queries: Batch, gallery: Batch, of_gallery: Iterable[str] | None = None) -> Batch:
    """Return a batch of Q · G rows in the order [Q, G]: row (q, g) is query q beside candidate g.

    A row has the modalities ``of_gallery`` of candidate g, and everything else of query q. Targets are those of
    :class:`~bayes_adapters.likelihoods.Candidates`, int64 (Q·G, 2): q, and whether both have the same number in
    ``targets``; −100 where either batch has none. ``index`` is ``query.ids · G + candidate.ids`` where these are
    numbered within G, so that noise of local latents depends on the pair alone.

    Args:
        queries: Q examples, with the numbers of their groups as targets, int64 (Q,), or without any.
        gallery: G candidates, likewise.
        of_gallery: modalities of the candidate: a context's name (``"audio"``), or the encoder's, whose inputs are
            named ``<encoder>.<argument>``. None: those that the gallery has and the queries lack.

    Raises:
        ConfigError: ``of_gallery`` names a modality that the gallery lacks, or nothing tells which are the candidate's.
        DataError: targets that are no numbers of groups, or inputs of the two that do not fit one row.

    >>> texts = Batch({"text.input_ids": torch.tensor([[1], [2]])}, targets=torch.tensor([7, 8]))
    >>> sounds = Batch({"audio.x": torch.tensor([[0.1], [0.2], [0.3]])}, targets=torch.tensor([8, 7, 7]))
    >>> pairs = all_pairs(texts, sounds)
    >>> pairs.inputs["text.input_ids"].flatten().tolist(), pairs.targets[:, 1].tolist()
    ([1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 0, 0])
    """
    count, size = queries.size, gallery.size
    taken = _taken(queries, gallery, of_gallery)
    device = queries.ids.device
    rows = torch.arange(count * size, device=device)
    of_query, of_candidate = rows // size, rows % size
    inputs = _joined(queries.inputs, gallery.inputs, taken, of_query, of_candidate)
    context = _joined(queries.context, gallery.context, taken, of_query, of_candidate)
    marks = torch.full_like(rows, -100)
    if queries.targets is not None and gallery.targets is not None:
        ours, theirs = require_numbers("queries", queries.targets), require_numbers("gallery", gallery.targets)
        marks = (ours[of_query] == theirs[of_candidate]).long()
    index = queries.ids[of_query] * size + gallery.ids[of_candidate]
    return Batch(inputs, torch.stack([of_query, marks], -1), context, index)


def modalities(batch: Batch) -> set[str]:
    """Return the names of a batch's modalities: its contexts, and the encoders of ``<encoder>.<argument>``."""
    return {*batch.context, *(key.partition(".")[0] for key in batch.inputs if "." in key)}


def _taken(queries: Batch, gallery: Batch, given: Iterable[str] | None) -> set[str]:
    taken = modalities(gallery) - modalities(queries) if given is None else set(given)
    require_modalities(taken, modalities(gallery), given is not None)
    return taken


def _joined(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], taken: set[str], of_query: Tensor, of_candidate: Tensor
) -> dict[str, Any]:
    own = {name: value[of_query] for name, value in ours.items() if name.partition(".")[0] not in taken}
    other = {name: value[of_candidate] for name, value in theirs.items() if name.partition(".")[0] in taken}
    require_one_kind(own, other)
    return own | other
