"""Laplace approximation: a Gaussian posterior around a trained point, from the curvature of the loss, without training.

Sources: MacKay 1992 (the evidence); Daxberger et al. 2021, arXiv 2106.14806; for low-rank adapters Yang et al. 2024,
"Bayesian low-rank adaptation for large language models" (Laplace-LoRA), arXiv 2308.13111.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.errors import choice, positive_number, whole_number
from bayes_adapters.guides import Laplace
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_mean
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.linearised import Linearised, Tangent
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.inference.predictive import predict
from bayes_adapters.surgery import _evidence
from bayes_adapters.surgery._curvature import Dense, Diagonal, LowRank, Scores, gather
from bayes_adapters.surgery._curvature import Structure as Structure
from bayes_adapters.surgery._laplace_checks import (
    require_memory,
    require_structure,
    require_targets,
    require_validation,
    warn_unbounded,
    warn_untrained,
)
from bayes_adapters.surgery._prior_unit import prior_unit

VALIDATED = tuple(10.0 ** (power / 2) for power in range(-8, 9))
"""Prior precisions tried on validation data: 10⁻⁴ … 10⁴, two a decade."""


class PriorPrecision(StrEnum):
    """By what λ is chosen."""

    EVIDENCE = "evidence"
    """The greatest marginal likelihood of the training data: no held-out examples are needed."""
    VALIDATION = "validation"
    """The smallest negative log predictive density of held-out examples."""


@dataclass(frozen=True)
class LaplaceLog:
    """What a Laplace approximation found.

    Args:
        structure: which part of the curvature was kept.
        size: D, the number of weights.
        num_examples: how many examples the curvature was summed over; it stands for ``num_data``.
        num_data: N.
        prior_precision: λ.
        log_likelihood: Σ log p(y | x, m) over N examples, nats.
        log_evidence: log Z(λ), nats.
        determined: γ, how many directions the data determine, of D.
        kept: the share of the curvature's trace that the structure holds; below 1 the posterior is wider than the exact
            one in the directions left out.
        shift: √(gᵀ Σ g / max(γ, 1)), g being the gradient of the log-likelihood or of the log-joint, whichever gives
            less: how many posterior standard deviations the optimum lies away, per determined direction. Near 0 there.
        searched: (λ, criterion) pairs that were tried on validation data, the criterion in nats per example.
    """

    structure: str
    size: int
    num_examples: int
    num_data: int
    prior_precision: float
    log_likelihood: float
    log_evidence: float
    determined: float
    kept: float
    shift: float
    searched: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON, for ``save(..., task=…)`` or a report."""
        return asdict(self) | {"searched": [list(pair) for pair in self.searched]}


@exclusive()
def laplace(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Batch | Iterable[Batch],
    *,
    structure: Structure | str = Structure.LOW_RANK,
    rank: int = 256,
    prior_precision: PriorPrecision | str | float = PriorPrecision.EVIDENCE,
    validation: Batch | Iterable[Batch] | None = None,
    linearised: bool = True,
    num_samples: int = 64,
    num_data: int | None = None,
    max_gigabytes: float = 4.0,
    seed: int = 0,
) -> tuple[AdapterModel, Laplace, LaplaceLog]:
    """Put a Gaussian around the weights of a trained adapter: their Laplace approximation.

    Formula, over the D entries w of all random sites, at the value m that the guide gives them::

        q(w) = N(m, (λ S⁻² + H)⁻¹),   H = (N / n) Σ_n J_nᵀ Λ_n J_n,   Λ_n = −∂² log p(y_n | f_n) / ∂f_n²

    with f the head's outputs, J their Jacobian, and N(μ, S²) the model's prior, of which λ multiplies the precision:
    λ = 1 is the prior itself. A prior that is no Gaussian is replaced by the one with its mean and variance, or by
    N(0, 1) where it has none. Where Λ_n has negative eigenvalues (Student's t, a noise of its own for each example)
    they count as 0. Sums run over examples, whatever the batches; padding counts nowhere.

    λ is the maximum of the evidence ``log p(data | m) − ½ λ ‖S⁻¹(m − μ)‖² − ½ log det(I + S H S / λ)`` or minimises the
    negative log density of ``validation``, or is given.

    ``predict(model, guide, batch, linearised=True)`` is the predictive of the model that H belongs to, the one that is
    linear in w: Gaussian in f, with covariance J Σ Jᵀ. Without ``linearised`` the network itself runs at draws of w.
    Where the posterior is wide the two differ much; compare them on held-out examples. Where the adapter answers its
    training examples with certainty, Λ_n is nearly 0, and both λ and H say little of how wrong it may be elsewhere:
    choose λ on ``validation``.

    Args:
        model: a trained model whose random parts are weights, such as ``StochasticCore(granularity="global")``,
            ``Wander`` or ``StochasticDown``.
        guide: what says where they are: ``Delta``, or another guide's means.
        data: the training data, once.
        structure: see :class:`Structure`.
        rank: k of ``"low_rank"``. With at least N times (C − 1) of C classes it is exact.
        prior_precision: λ, or how it is chosen, see :class:`PriorPrecision`.
        validation: held-out batches for ``"validation"``.
        linearised: whether validation predicts by the linearised outputs.
        num_samples: draws for ``"validation"``.
        num_data: N where ``data`` is only a part of the data set; None takes the model's, or what there is.
        max_gigabytes: what the structure may need on the CPU.
        seed: of validation's draws.

    Returns:
        ``(model, guide, log)``: the model as it was, its new guide in eval mode, and how it was found.

    Raises:
        ConfigError: an option is out of range; the structure needs more memory; the model has no random weights, or
            local ones, or a head with a posterior of its own; the curvature is 0 (an adapter that was never trained).
        DataError: no batch, or one without targets.
        NonFiniteError: a gradient is NaN or infinite.

    Warns:
        UserWarning: the point is no optimum (Laplace before training), with the gain of a Newton step; or λ lies at an
            end of what was searched.

    >>> _ = torch.manual_seed(0)
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Categorical
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import StochasticCore
    >>> from bayes_adapters.training import fit
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> data = Batch({"input_ids": torch.randint(20, (16, 6))}, targets=torch.randint(2, (16,)))
    >>> model = StochasticCore(BertModel(tiny), Categorical(2), rank=2, granularity="global", num_data=16)
    >>> point = Delta(model)
    >>> _ = fit(model, point, data, max_steps=100, progress=False)
    >>> model, guide, log = laplace(model, point, data, structure="full")
    >>> answer = predict(model, guide, data, linearised=True)
    >>> bool((answer.epistemic > 0).all()), log.size
    (True, 8)
    """
    structure = choice(Structure, "structure", structure)
    given = prior_precision if isinstance(prior_precision, int | float) else None
    if given is None:
        prior_precision = choice(PriorPrecision, "prior_precision", prior_precision)
    else:
        positive_number("prior_precision", given)
    require_validation(prior_precision, validation)
    whole_number("rank", rank)
    require_pair(model, guide)
    require_structure(model, guide)
    with evaluating(model, guide):
        values = weight_mean(model, guide)
        tangent = Tangent(model, values)
        loc = float64(tangent.flat(values)).cpu()
        require_memory(len(loc), _gigabytes(model, len(loc), rank), structure.value, max_gigabytes)
        mean, unit = prior_unit(model)
        curvature = _empty(model, structure, len(loc), rank)
        scores = gather(model, tangent, data, unit, curvature)
    total = num_data or model.num_data or scores.count
    scale = total / scores.count
    pairs = [(directions, scale * along) for directions, along in curvature.eigen()]
    diagonal = scale * curvature.diagonal if isinstance(curvature, Diagonal) else None
    bent = diagonal if diagonal is not None else torch.cat([along for _, along in pairs])
    offset = (loc - mean) / unit
    norm, log_likelihood = float(offset.square().sum()), scale * scores.log_likelihood

    blocks = [] if diagonal is not None else _blocks(model, structure, len(loc))
    counts = [[first, last, len(along)] for (first, last), (_, along) in zip(blocks, pairs, strict=True)]
    new = Laplace(model, blocks=counts).eval()
    new.place(loc, unit, diagonal, pairs)
    searched: list[tuple[float, float]] = []
    if given is not None:
        precision = float(given)
    elif validation is not None:
        held = [validation] if isinstance(validation, Batch) else list(validation)
        scored = _tangents_scored if linearised else _draws_scored
        searched = list(zip(VALIDATED, scored(model, new, held, num_samples, seed), strict=True))
        precision = min(searched, key=lambda pair: pair[1])[0]
        warn_unbounded(VALIDATED, precision, 3)
    else:
        precision = _evidence.maximum(norm, bent)
        warn_unbounded(_evidence.GRID, precision, 3)
    new.rescale(precision)
    gamma = _evidence.determined(precision, bent)
    shift = math.sqrt(_newton(new, scores, offset / unit, precision, scale) / max(gamma, 1.0))
    warn_untrained(shift, 3)
    evidence = _evidence.log_evidence(precision, log_likelihood, norm, bent)
    counted = (structure.value, len(loc), scores.count, total, precision, log_likelihood, evidence)
    log = LaplaceLog(*counted, gamma, curvature.kept, shift, tuple(searched))
    return model, new, log


def _newton(guide: Laplace, scores: Scores, pull: Tensor, precision: float, scale: float) -> float:
    """gᵀ Σ g, the squared length of a Newton step, in posterior standard deviations.

    g is the gradient of the log-likelihood or of the log-joint, whichever is nearer to its optimum.
    """
    q: Any = guide.joint()
    likelihood = scale * scores.gradient
    both = torch.stack([likelihood, likelihood - precision * pull]).to(q.loc)
    return float(float64(q.projected(both)).square().sum(-1).min())


def _draws_scored(model: AdapterModel, guide: Laplace, held: list[Batch], draws: int, seed: int) -> list[float]:
    """The negative log density of the held-out examples, in nats per example, for every λ that is tried."""
    scores = []
    for precision in VALIDATED:
        guide.rescale(precision)
        found: Any = predict(model, guide, held, num_samples=draws, seed=seed).log_density
        scores.append(-float(float64(found).mean()))
    return scores


@torch.no_grad()
def _tangents_scored(model: AdapterModel, guide: Laplace, held: list[Batch], draws: int, seed: int) -> list[float]:
    """The same of the linearised outputs, whose Jacobians no λ changes: each batch has them computed once."""
    numbers, device = torch.arange(draws), next(model.parameters()).device
    totals, count = [0.0] * len(VALIDATED), 0
    with evaluating(model, guide):
        source = Linearised(model, guide, mean_only=False, seed=seed)
        for given in require_targets(held):
            batch = given.to(device)
            count += batch.size
            for place, precision in enumerate(VALIDATED):
                guide.rescale(precision)
                fn, _ = source.outcome(batch, numbers.to(device), batch.ids)
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
        found += [(start + place * width, start + (place + 1) * width) for place in range(len(site.layers))]
        start += len(site.layers) * width
    return found


def _empty(model: AdapterModel, structure: Structure, size: int, rank: int) -> Diagonal | Dense | LowRank:
    if structure is Structure.DIAGONAL:
        return Diagonal(size)
    return LowRank(size, rank) if structure is Structure.LOW_RANK else Dense(_blocks(model, structure, size))


def _gigabytes(model: AdapterModel, size: int, rank: int) -> dict[str, float]:
    """Structure → gigabytes of float64: the sums, their eigenvectors, and what the decomposition needs beside them."""
    widths = [last - first for first, last in _blocks(model, Structure.BLOCK, size)]
    directions = min(rank, size)
    return {
        Structure.LOW_RANK.value: 8e-9 * 5 * size * directions,
        Structure.BLOCK.value: 8e-9 * (2 * sum(width**2 for width in widths) + 2 * max(widths) ** 2),
        Structure.DIAGONAL.value: 8e-9 * 4 * size,
        Structure.FULL.value: 8e-9 * 4 * size**2,
    }
