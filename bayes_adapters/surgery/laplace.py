"""Laplace approximation: a Gaussian posterior around a trained point, from the curvature of the loss, without training.

Sources: MacKay 1992 (the evidence); Daxberger et al. 2021, arXiv 2106.14806; for low-rank adapters Yang et al. 2024,
"Bayesian low-rank adaptation for large language models" (Laplace-LoRA), arXiv 2308.13111.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.distributions import CurvedGaussian, CurvedMatrices
from bayes_adapters.errors import choice, whole_number
from bayes_adapters.guides import KroneckerLaplace, Laplace
from bayes_adapters.guides.kronecker_laplace import matrices
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_mean
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.linearised import Linearised, Tangent
from bayes_adapters.inference.linearised_outputs import Linearisation, read_linearised
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.surgery._curvature import Dense, Diagonal, LowRank, gather
from bayes_adapters.surgery._curvature import Structure as Structure
from bayes_adapters.surgery._kronecker import Kronecker
from bayes_adapters.surgery._kronecker import Tokens as Tokens
from bayes_adapters.surgery._laplace_checks import (
    require_global_weights,
    require_memory,
    require_one_unit,
    require_structure,
    require_targets,
    require_tokens,
    require_trained,
)
from bayes_adapters.surgery._laplace_fit import DRAWS, Found, draws_scored, read_precision
from bayes_adapters.surgery._laplace_fit import VALIDATED as VALIDATED
from bayes_adapters.surgery._laplace_fit import LaplaceLog as LaplaceLog
from bayes_adapters.surgery._laplace_fit import PriorPrecision as PriorPrecision
from bayes_adapters.surgery._prior_unit import prior_unit
from bayes_adapters.surgery._random_weight_checks import read_num_data
from bayes_adapters.surgery.random_weights import Weights as Weights
from bayes_adapters.surgery.random_weights import random_weights, read_weights


@exclusive()
def laplace(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Batch | Iterable[Batch],
    *,
    weights: Weights | str | None = None,
    head: bool = False,
    structure: Structure | str = Structure.LOW_RANK,
    rank: int = 256,
    tokens: Tokens | str | None = None,
    prior_precision: PriorPrecision | str | float = PriorPrecision.EVIDENCE,
    validation: Batch | Iterable[Batch] | None = None,
    linearised: bool | Linearisation | str = True,
    num_samples: int | None = None,
    num_data: int | None = None,
    max_gigabytes: float = 4.0,
    seed: int = 0,
) -> tuple[AdapterModel, Laplace | KroneckerLaplace, LaplaceLog]:
    """Put a Gaussian around the weights of a trained adapter: their Laplace approximation.

    Formula, over the D entries w of all random sites, at the value m that the guide gives them::

        q(w) = N(m, (λ S⁻² + H)⁻¹),   H = (N / n) Σ_n J_nᵀ Λ_n J_n,   Λ_n = −∂² log p(y_n | f_n) / ∂f_n²

    with f the head's outputs, J their Jacobian, and N(μ, S²) the model's prior, of which λ multiplies the precision:
    λ = 1 is the prior itself. A prior that is no Gaussian is replaced by the one with its mean and variance, or by
    N(0, 1) where it has none. Where Λ_n has negative eigenvalues (Student's t, a noise of its own for each example)
    they count as 0. Sums run over examples, whatever the batches; padding counts nowhere.

    ``structure="kronecker"`` is KFAC: the block of a matrix ``y_t = W x_t`` becomes ``G ⊗ A`` with A the second moment
    of x and G the curvature in y. It is exact for one example of one token, and where x is always the same; else it
    takes x and the gradients in y for independent, and sums over tokens first ("reduce") or as over examples
    ("expand"). Its guide is :class:`~bayes_adapters.guides.KroneckerLaplace`, and the prior must have one standard
    deviation per matrix. Source: Eschenhagen et al. 2023, arXiv 2311.00636.

    λ is the maximum of the evidence ``log p(data | m) − ½ λ ‖S⁻¹(m − μ)‖² − ½ log det(I + S H S / λ)`` or minimises the
    negative log density of ``validation``, or is given.

    ``predict(model, guide, batch, linearised="outputs")`` is the predictive of the model that H belongs to, the one
    that is linear in w: Gaussian in f, with covariance J Σ Jᵀ, of which it takes 1000 draws; ``"probit"`` takes none,
    and ``True`` draws w. Without ``linearised`` the network itself runs at draws of w.
    Where the posterior is wide the two differ much; compare them on held-out examples. Where the adapter answers its
    training examples with certainty, Λ_n is nearly 0, and both λ and H say little of how wrong it may be elsewhere:
    choose λ on ``validation``.

    Args:
        model: a trained model: a plain LoRA, or one whose random parts are weights, such as
            ``StochasticCore(granularity="global")``, ``StochasticDown`` or ``Wander``.
        guide: what says where they are: ``Delta``, or another guide's means.
        data: the training data, once.
        weights: which weights get the posterior, see :class:`~bayes_adapters.surgery.random_weights.Weights`: the
            model's own random sites, both factors of each layer, as published, or r² numbers per layer; None is the
            first for a model that has sites, else the second.
        head: whether the weights of a linear head are among them; not with ``weights="sites"``.
        structure: see :class:`Structure`.
        rank: k of ``"low_rank"``, with at least N times (C − 1) of C classes it is exact; of ``"kronecker"`` the most
            directions that are kept of either factor.
        tokens: how the factors of ``"kronecker"`` sum over tokens, see :class:`Tokens`; None is ``"expand"`` where the
            likelihood has one target per token, else ``"reduce"``.
        prior_precision: λ, or how it is chosen, see :class:`PriorPrecision`.
        validation: held-out batches for ``"validation"``.
        linearised: how validation predicts, as in ``predict``: choose λ by the predictive that you will use. True and
            False take draws of weights; the Jacobians of True are made once for all λ, of ``"outputs"`` for each.
        num_samples: draws for ``"validation"``; None is 64 of weights, 1000 of outputs.
        num_data: N where ``data`` is only a part of the data set; None takes the model's, or what there is.
        max_gigabytes: what the structure may need on the CPU.
        seed: of validation's draws.

    Returns:
        ``(model, guide, log)``: the model, in eval mode if it is a new one, its new guide, and how it was found. With
        ``weights="sites"`` that is the model given; else a new one, on a copy of the backbone that shares the memory of
        the frozen weights, with the prior N(0, 1), so that λ is the prior's precision itself.

    Raises:
        ConfigError: an option is out of range; the structure needs more memory; the model has no random weights, or
            local ones, or a head with a posterior of its own; the curvature is 0 (an adapter that was never trained).
        DataError: no batch, or one without targets.
        NonFiniteError: a gradient is NaN or infinite.

    Warns:
        UserWarning: the point is no optimum (Laplace before training), with its distance from one in posterior standard
            deviations; or λ lies at an end of what was searched.

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
    >>> model, guide, log = laplace(lora, Delta(lora), data)
    >>> answer = predict(model, guide, data, linearised="outputs")
    >>> bool((answer.epistemic > 0).all()), log.size  # A and B of two layers
    (True, 64)
    """
    structure = choice(Structure, "structure", structure)
    precision = read_precision(prior_precision, validation)
    summed = None if tokens is None else choice(Tokens, "tokens", tokens)
    require_tokens(structure, summed)
    whole_number("rank", rank)
    whole_number("num_samples", 1 if num_samples is None else num_samples)
    how = read_linearised(linearised)
    require_pair(model, guide)
    require_structure(model)
    require_global_weights(model)
    kind, num_data = read_weights(model, weights, head), read_num_data(num_data, model)
    with evaluating(model, guide):
        if kind is Weights.SITES:
            values = weight_mean(model, guide)
        else:
            point = model
            model, values = random_weights(point, guide, kind, head=head, num_data=num_data)
            if kind is Weights.FACTORS:
                require_trained(point)
        found = _curved(model, values, data, structure, rank, summed, num_data, max_gigabytes)
        if kind is not Weights.SITES:
            model.num_data = found.num_data
        if structure is Structure.KRONECKER:
            kept = [(len(g), len(a)) for _, g, _, a in found.sides]
            new: Laplace | KroneckerLaplace = KroneckerLaplace(model, kept=kept).eval()
        else:
            new = Laplace(model, blocks=found.blocks(_blocks(model, structure, len(found.loc)))).eval()
        held = [validation] if isinstance(validation, Batch) else list(validation or [])

        def validated() -> list[float]:
            if how is Linearisation.WEIGHTS:
                return _tangents_scored(model, new, new.gaussian, held, num_samples or DRAWS, seed)
            return draws_scored(model, new, new.gaussian, held, num_samples, seed, how)

        log = found.settle(new.gaussian, precision, validated, 4)
    return model, new, log


def _curved(
    model: AdapterModel,
    values: Mapping[str, Tensor],
    data: Batch | Iterable[Batch],
    structure: Structure,
    rank: int,
    tokens: Tokens | None,
    num_data: int | None,
    max_gigabytes: float,
) -> Found:
    tangent = Tangent(model, values)
    loc = float64(tangent.flat(tangent.values)).cpu()
    require_memory(len(loc), _gigabytes(model, len(loc), rank), structure.value, max_gigabytes)
    prior = prior_unit(model)
    if structure is Structure.DIAGONAL:
        curvature: Diagonal | LowRank | Dense | Kronecker = Diagonal(len(loc))
    elif structure is Structure.LOW_RANK:
        curvature = LowRank(len(loc), rank)
    elif structure is Structure.KRONECKER:
        tokens = tokens or (Tokens.EXPAND if model.likelihood.per_token else Tokens.REDUCE)
        curvature = Kronecker(model, tokens, rank, _unit_of_matrices(model, prior[1]))
    else:
        curvature = Dense(_blocks(model, structure, len(loc)))
    scores = gather(model, tangent, data, prior[1], curvature)
    return Found(structure, curvature, scores, loc, prior, num_data)


@torch.no_grad()
def _tangents_scored(
    model: AdapterModel,
    guide: AdapterGuide,
    gaussian: CurvedGaussian | CurvedMatrices,
    held: list[Batch],
    draws: int,
    seed: int,
) -> list[float]:
    """As :func:`draws_scored`, of linearised outputs, whose Jacobians no λ changes: each batch has them made once."""
    device = next(model.parameters()).device
    numbers = torch.arange(draws, device=device)
    totals, count = [0.0] * len(VALIDATED), 0
    source = Linearised(model, guide, mean_only=False, seed=seed)
    for given in require_targets(held):
        batch = given.to(device)
        count += batch.size
        for place, precision in enumerate(VALIDATED):
            gaussian.rescale(precision)
            fn, _ = source.outcome(batch, numbers, batch.ids)
            density = float64(model.likelihood.log_density(fn, batch.targets))
            totals[place] -= float((density.logsumexp(0) - math.log(draws)).sum())
    return [total / count for total in totals]


def _blocks(model: AdapterModel, structure: Structure, size: int) -> list[tuple[int, int]]:
    """(first, last) of each block: of every site and layer, or one of all entries."""
    if structure is not Structure.BLOCK:
        return [(0, size)]
    found, start = [], 0
    for site in model.sites:
        width = torch.Size(site.event).numel()
        if width:  # pruning may have left a layer without ranks
            found += [(start + place * width, start + (place + 1) * width) for place in range(len(site.layers))]
        start += len(site.layers) * width
    return found


def _unit_of_matrices(model: AdapterModel, unit: Float[Tensor, " D"]) -> Float[Tensor, " b"]:
    """The prior's standard deviation of every site and layer, 1 where there are no entries."""
    found, start = [], 0
    for site in model.sites:
        width = torch.Size(site.event).numel()
        for place in range(len(site.layers)):
            part = unit[start + place * width : start + (place + 1) * width]
            require_one_unit(site.name, part)
            found.append(part[0] if width else torch.ones((), dtype=unit.dtype))
        start += len(site.layers) * width
    return torch.stack(found)


def _gigabytes(model: AdapterModel, size: int, rank: int) -> dict[str, float]:
    """Structure → gigabytes of float64: the sums, their eigenvectors, and what the decomposition needs beside them."""
    widths = [last - first for first, last in _blocks(model, Structure.BLOCK, size)]
    directions = min(rank, size)
    shapes = matrices(model)
    return {
        Structure.LOW_RANK.value: 8e-9 * 5 * size * directions,
        Structure.BLOCK.value: 8e-9 * (2 * sum(width**2 for width in widths) + 2 * max(widths) ** 2),
        Structure.KRONECKER.value: 8e-9 * 2 * sum(m**2 + n**2 for m, n in shapes),
        Structure.DIAGONAL.value: 8e-9 * 4 * size,
        Structure.FULL.value: 8e-9 * 4 * size**2,
    }
