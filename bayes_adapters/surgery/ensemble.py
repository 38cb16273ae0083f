"""Deep ensembles on one backbone: several trained adapters as one model and guide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayes_adapters.files._backbone import fingerprint
from bayes_adapters.guides import StoredDraws
from bayes_adapters.heads import LinearHead
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_mean
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._ensemble_checks import require_alike, require_several
from bayes_adapters.surgery.random_weights import Weights, random_weights, read_weights


@exclusive()
@torch.no_grad()
def ensemble(
    members: Sequence[tuple[AdapterModel, AdapterGuide]], *, weights: Weights | str | None = None
) -> tuple[AdapterModel, StoredDraws]:
    """Make one model and guide of K trained adapters, such as LoRAs from K seeds: a deep ensemble on one backbone.

    ``p(y | x) = (1/K) Σ_k p(y | x, w_k)``, exactly, with ``predict(model, guide, batch, num_samples=K)``; aleatoric is
    the members' mean entropy, and epistemic their disagreement. The frozen backbone is in memory once, and a pass
    serves several members.

    A member's weights w_k are its A and B, and its head's, where that is linear; any structure that equals a plain LoRA
    at fixed weights will do, a core being taken into A. Or they are the members' own random sites, such as the
    factors of ``Wander``; everything that is not random must then be the same in all of them.

    The likelihood's own parameters, such as log σ of ``Gaussian``, are no weights: their average over the members
    stands for all. So the predictive is exactly the members' average where they agree, or where there are none, as of
    classes.

    Args:
        members: trained (model, guide) pairs with the same ranks, scale and layers, on copies of one backbone.
        weights: ``"factors"`` or ``"sites"``; None is the first for members without random sites.

    Returns:
        ``(model, guide)`` in eval mode, on a copy of the first member's backbone that shares its frozen weights; with
        ``"sites"`` the first member itself.

    Raises:
        ConfigError: fewer than two members; members of other shapes, backbones or heads; no plain LoRA.

    Source: Lakshminarayanan et al. 2017, arXiv 1612.01474.

    >>> import copy
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> net = BertModel(tiny)
    >>> loras = [LoRA(copy.deepcopy(net), Bernoulli(), rank=2) for _ in range(3)]  # train each, from another seed
    >>> model, guide = ensemble([(lora, Delta(lora)) for lora in loras])
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])})
    >>> mean = sum(predict(lora, Delta(lora), batch).mean for lora in loras) / 3
    >>> torch.allclose(predict(model, guide, batch, num_samples=3).mean, mean, atol=1e-6)
    True
    """
    require_several(members)
    for model, guide in members:
        require_pair(model, guide)
    first, guide = members[0]
    linear = type(first.head) is LinearHead
    kind = read_weights(first, weights, head=linear and not first.sites)
    require_alike(members, kind, linear, fingerprint)
    if kind is Weights.SITES:
        values = [weight_mean(model, guide) for model, guide in members]
        return _mixture(first, values)
    pairs = [random_weights(model, guide, kind, head=linear) for model, guide in members]
    new = pairs[0][0]
    for name, parameter in new.likelihood.named_parameters():
        own = [model.likelihood.get_parameter(name).detach().to(parameter.device) for model, _ in members]
        parameter.data = torch.stack(own).mean(0)
    return _mixture(new, [values for _, values in pairs])


def _mixture(model: AdapterModel, values: list[dict[str, Tensor]]) -> tuple[AdapterModel, StoredDraws]:
    draws = {site.name: torch.stack([v[site.name] for v in values]) for site in model.sites}
    return model, StoredDraws.of(model, draws).eval()
