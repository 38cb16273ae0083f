"""How far a context should count: a gate between what a missing context gives and what this one gives.

A context that says nothing of the label still tells the training examples apart, and a network that reads it learns
their labels by it. No gate that is trained with the network can prevent that: whatever its prior, opening it lowers the
training loss, and the network's scale makes up for a small gate. So the gate's likelihood is that of examples that the
network has not seen, and its prior is a spike at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bayes_adapters.data.batch import Batch
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict
from bayes_adapters.reliability._gate_checks import check_gates, require_density_of, require_gated, require_heard

_GATES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


class GateChoice(NamedTuple):
    """What :func:`choose_gate` has found.

    Args:
        gate: g, which guide and model now have.
        nll: −log p̄_g(y) on the validation examples, nats per example.
        closed: that with g = 0.
        tried: g → nll, in rising order.
    """

    gate: float
    nll: float
    closed: float
    tried: dict[float, float]


def choose_gate(
    model: AdapterModel,
    guide: Any,
    validation: Batch | Sequence[Batch],
    *,
    modality: str | None = None,
    gates: Iterable[float] = _GATES,
    cost: float = 2.0,
    num_samples: int = 16,
    seed: int = 0,
) -> GateChoice:
    """Open the gate of a context as far as validation examples ask for; an uninformative context stays closed.

    Formula: g = argmax_g log p(g) + Σ_i log p̄_g(y_i | x_i, a_i), the maximum a posteriori under the spike and slab
    ``p(g) = π δ(g) + (1 − π) U(g; 0, 1)``, ``cost = log π / (1 − π)`` nats: g is 0 unless another g of the grid makes
    the n validation examples together more than ``cost`` nats likelier. p̄_g is the predictive of a posterior that reads
    ``c^∅ + g (c − c^∅)`` in the place of c, and of a head that reads ``n + g (ā − n)`` in the place of ā; see ``gate=``
    of :class:`bayes_adapters.guides.Amortised` and of the models of late fusion. Guide and model get the same g.

    The answer at g = 0 is that without the context, so it has to be learned: train on
    ``transformed(data, ModalityDropout(modality, 0.5))``, see :func:`bayes_adapters.training.transformed`.

    Args:
        model: trained.
        guide: its guide.
        validation: labelled examples that were not trained on.
        modality: which context, where several are read; the others keep their gates.
        gates: what to try; 0 is tried in any case.
        cost: nats that all validation examples together must gain, at least 0.
        num_samples: draws of each prediction, which are the same at every g.
        seed: of the draws.

    Returns:
        A :class:`GateChoice`; ``save`` keeps the gate.

    Raises:
        ConfigError: neither guide nor model has a gate for the modality, the modality has to be named, there is no null
            context, or ``gates`` or ``cost`` are out of range.
        DataError: no validation examples, none with the context, or none with targets.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, Frames
    >>> from bayes_adapters.systems import build
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model, guide = build("caliber-x", BertModel(tiny), Bernoulli(), context_dim=6, dim=8)
    >>> audio = Frames(torch.randn(8, 9, 6), torch.ones(8, 9, dtype=torch.bool))
    >>> held = Batch({"input_ids": torch.arange(16).reshape(8, 2)}, torch.tensor([0.0, 1.0] * 4), {"audio": audio})
    >>> choose_gate(model, guide, held).gate, guide.gate  # nothing was trained: nothing is gained
    (0.0, {'audio': 0.0})
    """
    grid = check_gates(gates, cost)
    batches = [validation] if isinstance(validation, Batch) else list(validation)
    name, owners = require_gated(model, guide, modality)
    require_heard(batches, name)
    before, tried, count = [owner.gate[name] for owner in owners], dict[float, float](), 0
    try:
        for gate in grid:
            for owner in owners:
                owner.gate[name] = gate
            density = require_density_of(predict(model, guide, batches, num_samples=num_samples, seed=seed))
            tried[gate], count = -float(density.double().mean()), len(density)
    except BaseException:
        for owner, old in zip(owners, before, strict=True):
            owner.gate[name] = old
        raise
    best = min(tried, key=lambda gate: count * tried[gate] + cost * (gate > 0.0))
    for owner in owners:
        owner.gate[name] = best
    return GateChoice(best, tried[best], tried[0.0], tried)
