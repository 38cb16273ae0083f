"""Laplace approximation of the last layer: a Gaussian over the weights of a trained linear head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.errors import choice, whole_number
from bayes_adapters.heads import LaplaceLinear
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import PosteriorMean, UnreadOutcome
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.surgery._curvature import Dense, Diagonal, LowRank, Scores, Structure, bend
from bayes_adapters.surgery._laplace_checks import (
    require_curved,
    require_curved_density,
    require_finite_curvature,
    require_memory,
    require_no_kronecker,
    require_structure,
    require_targets,
)
from bayes_adapters.surgery._laplace_fit import Found, LaplaceLog, PriorPrecision, draws_scored, read_precision
from bayes_adapters.surgery._random_weight_checks import read_num_data, require_linear
from bayes_adapters.surgery._rebuild import rebuilt


@exclusive()
def last_layer_laplace(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Batch | Iterable[Batch],
    *,
    structure: Structure | str = Structure.FULL,
    rank: int = 256,
    prior_precision: PriorPrecision | str | float = PriorPrecision.EVIDENCE,
    validation: Batch | Iterable[Batch] | None = None,
    num_samples: int = 64,
    num_data: int | None = None,
    max_gigabytes: float = 4.0,
    seed: int = 0,
) -> tuple[AdapterModel, AdapterGuide, LaplaceLog]:
    """Put a Gaussian around the weights of a trained linear head: the Laplace approximation of the last layer.

    Formula, for ``f = W φ``, φ = [pool(h) ; 1] under the adapters' means, and D = K (d + 1) numbers in W::

        q(vec W) = N(m, (λ I + H)⁻¹),   H = (N / n) Σ_n Λ_n ⊗ φ_n φ_nᵀ,   Λ_n = −∂² log p(y_n | f_n) / ∂f_n²

    and the rest as in :func:`bayes_adapters.surgery.laplace.laplace`, whose options these are. f is linear in W, so H
    is the exact Hessian where Λ has no negative eigenvalue, and draws of W have the linearised predictive. It needs one
    pass over the data and no backward pass. The adapters keep their guide and its draws, whatever it is.

    Args:
        model: a trained model with a :class:`~bayes_adapters.heads.LinearHead`, of any structure.
        guide: its guide, of any family.
        data: the training data, once.
        structure: ``"full"``, ``"low_rank"`` or ``"diagonal"``; ``"block"`` has one block per output.
        rank: k of ``"low_rank"``.
        prior_precision: λ, or how it is chosen.
        validation: held-out batches for ``"validation"``.
        num_samples: draws for ``"validation"``.
        num_data: N where ``data`` is only a part of the data set.
        max_gigabytes: what the structure may need on the CPU.
        seed: of validation's draws.

    Returns:
        ``(model, guide, log)`` in eval mode: model and guide of the same classes with the head ``LaplaceLinear``, on a
        copy of the backbone that shares the memory of the frozen weights, and how the posterior was found.

    Raises:
        ConfigError, DataError, NonFiniteError: as ``laplace``; or the head is none of that class.

    Warns:
        UserWarning: the head is at no optimum, or λ lies at an end of what was searched.

    Source: Kristiadi, Hein and Hennig 2020, arXiv 2002.10118; Daxberger et al. 2021, arXiv 2106.14806.

    >>> _ = torch.manual_seed(0)
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Categorical, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> from bayes_adapters.training import fit
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> data = Batch({"input_ids": torch.randint(20, (16, 6))}, targets=torch.randint(2, (16,)))
    >>> lora = LoRA(BertModel(tiny), Categorical(2), rank=2)
    >>> _ = fit(lora, Delta(lora), data, max_steps=100, progress=False)
    >>> model, guide, log = last_layer_laplace(lora, Delta(lora), data)
    >>> bool((predict(model, guide, data).epistemic > 0).all()), log.size
    (True, 18)
    """
    structure = choice(Structure, "structure", structure)
    require_no_kronecker(structure)
    precision = read_precision(prior_precision, validation)
    whole_number("rank", rank)
    require_pair(model, guide)
    require_structure(model)
    require_linear(model)
    num_data = read_num_data(num_data, model)
    loc = _joined(model.head.get_parameter("weight"), model.head.get_parameter("bias")[:, None])
    rows, width = loc.shape
    curvature, ranges = _empty(structure, rows, width, rank, max_gigabytes)
    with evaluating(model, guide):
        scores = _gather(model, guide, data, curvature)
        prior = torch.zeros_like(loc.flatten()), torch.ones_like(loc.flatten())
        found = Found(structure, curvature, scores, loc.flatten(), prior, num_data)
        head = LaplaceLinear(found.blocks(ranges), pooling=model.head.pooling)
        new, posterior = rebuilt(model, guide, head=head, num_data=found.num_data)
        gaussian: Any = posterior.head_posterior
        gaussian = gaussian.gaussian
        held = [validation] if isinstance(validation, Batch) else list(validation or [])
        log = found.settle(
            gaussian, precision, lambda: draws_scored(new, posterior, gaussian, held, num_samples, seed), 4
        )
    return new, posterior, log


def _joined(weight: Tensor, bias: Tensor) -> Float[Tensor, "K D"]:
    return float64(torch.cat([weight.detach(), bias.detach()], 1)).cpu()


def _empty(
    structure: Structure, rows: int, width: int, rank: int, max_gigabytes: float
) -> tuple[Diagonal | Dense | LowRank, list[tuple[int, int]]]:
    """The curvature to be summed, and (first, last) of its blocks: of all entries, or one for every output."""
    size = rows * width
    needed = {
        Structure.BLOCK.value: 8e-9 * (2 * rows * width**2 + 2 * width**2),
        Structure.LOW_RANK.value: 8e-9 * 5 * size * min(rank, size),
        Structure.DIAGONAL.value: 8e-9 * 4 * size,
        Structure.FULL.value: 8e-9 * 4 * size**2,
    }
    require_memory(size, needed, structure.value, max_gigabytes)
    if structure is Structure.DIAGONAL:
        return Diagonal(size), []
    if structure is Structure.LOW_RANK:
        return LowRank(size, rank), [(0, size)]
    per = [(row * width, (row + 1) * width) for row in range(rows)]
    ranges = per if structure is Structure.BLOCK else [(0, size)]
    return Dense(ranges), ranges


def _gather(
    model: AdapterModel, guide: AdapterGuide, data: Batch | Iterable[Batch], curvature: Diagonal | Dense | LowRank
) -> Scores:
    """Add every example's columns ``vec(r φᵀ)`` to the curvature, r being the columns of a root of Λ."""
    require_curved_density(model)
    device, size = next(model.parameters()).device, model.head.get_parameter("weight").numel()
    scores = Scores(0.0, torch.zeros(size + model.likelihood.num_outputs, dtype=torch.float64), 0)
    for given in require_targets(data):
        batch = given.to(device)
        targets: Any = batch.targets
        model.likelihood.accept(targets)
        features, outputs = _seen(model, guide, batch)
        for place in range(batch.size):
            score, slope, root = bend(model, outputs[place : place + 1], batch[place : place + 1])
            phi = float64(features[place]).reshape(-1, features.shape[-1])  # (tokens or 1, d)
            phi = torch.cat([phi, torch.ones_like(phi[:, :1])], 1)
            weights = torch.stack([float64(slope), *root]).reshape(1 + len(root), len(phi), -1)
            rows = torch.einsum("ctk,td->ckd", weights, phi).flatten(1).cpu()
            require_finite_curvature(model, rows, scores.count + place)
            scores.log_likelihood += score
            scores.gradient += rows[0]
            curvature.add(rows[1:].mT)
        scores.count += batch.size
    require_curved(model, curvature.trace, scores.count)
    return scores


@torch.no_grad()
def _seen(model: AdapterModel, guide: AdapterGuide, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the head sees and what it returns for it, (B, *T, d) and (B, *T, K), under the adapters' means."""
    seen: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with UnreadOutcome(), PosteriorMean():
            guide(batch.without_targets())
    finally:
        hook.remove()
        guide.trace = type(guide.trace)()
    return seen[0], model.head(seen[0])
