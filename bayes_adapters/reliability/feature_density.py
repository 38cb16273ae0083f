"""How dense an example's features are under the classes that a generative head has learned."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import whole_number
from bayes_adapters.heads.generative import LOG_DENSITY
from bayes_adapters.inference._draw_checks import require_predictable, require_some, require_wrapped
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_one_device, require_pair
from bayes_adapters.inference._sources import OwnGuide
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.reliability._checks import require_density


@exclusive()
@torch.no_grad()
def feature_density(
    model: AdapterModel, guide: AdapterGuide, data: Batch | Iterable[Batch], *, num_samples: int = 16, seed: int = 0
) -> Float[Tensor, " N"]:
    """Return log p(φ) of each example's features, nats: low where they are unlike those of every class.

    Formula: ``log (1/S) Σ_s Σ_k E[π_k] N(φ_s; m_k, Σ + S_k)``, φ_s the features of d numbers under draw s of the
    adapters; where these are points one pass serves all. Only differences between examples mean something: the level
    depends on d and on the features' unit.

    Args:
        model: its head is a :class:`~bayes_adapters.heads.GenerativeLastLayer`, or another that records the site
            ``head.log_density``.
        guide: the guide made for it.
        data: one batch, or batches of one data set in order.
        num_samples: S.
        seed: of the draws, as in :func:`bayes_adapters.predict`.

    Raises:
        ConfigError: the head knows no density; the guide belongs to another model.
        DataError: ``data`` holds no batch.
    """
    require_wrapped(data)
    require_pair(model, guide)
    require_one_device(model, guide)
    whole_number("num_samples", num_samples)
    source, device = OwnGuide(model, guide, False, seed), next(model.parameters()).device
    found: list[Tensor] = []
    offset = 0
    with evaluating(model, guide):
        for batch in [data] if isinstance(data, Batch) else data:
            require_predictable(batch)
            batch = batch.to(device).without_targets()
            ids = batch.ids + offset if batch.index is None else batch.ids
            offset += batch.size
            draws = num_samples if source.is_random(batch) else 1
            each = []
            for number in range(draws):
                nodes = source.nodes(batch, torch.tensor([number], device=device), ids)
                require_density(model, LOG_DENSITY, nodes)
                each.append(nodes[LOG_DENSITY]["value"][0])
            found.append(torch.logsumexp(torch.stack(each), 0) - math.log(draws))
    require_some(found)
    return torch.cat(found)
