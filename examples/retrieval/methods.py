"""The compared methods: dual encoders, which embed each side alone, and pair scorers, which rank their finds again.

Dual encoders have the likelihood ``Contrastive`` and the head ``TwoTowers`` of 64 numbers. Whisper's frames come from
the cache (:class:`~examples.studies.body_signals.adapters.Encoded` stands for Whisper), and each side is the mean over
its real positions before its matrix.

* ``ridge``: no training. W of ``ū ≈ W v̄`` from a recording's mean frame to its script's mean state, both standardised,
  by ridge regression; its penalty is chosen on the validation recordings. A score is ``cos / .07``.
* ``towers``: both encoders frozen, the two matrices trained; ``towers-ensemble``: five of them from other seeds.
* ``bayesian-towers``: the same with random matrices, ``BayesianTowers``.
* ``concat-lora``: LoRA of rank 8 in query and value of MiniLM as well; ``concat-lora-ensemble``: three of them.
* ``concat-core``: the same with random cores, ``ConcatCore`` under ``MeanField``.

Pair scorers are trained on pairs, right and wrong, half of the wrong scripts being among those that ``towers`` of the
same seed finds nearest. They rank its first candidates of each list again, and leave the order of the rest; the weight
of their score beside that of ``towers`` is chosen on validation recordings, 0 being one of the choices.

* ``rerank-fusion``: late fusion, LoRA in MiniLM and a head that sees the mean frame.
* ``rerank-cross-attention``: MiniLM's cores are made of the frames, without a posterior.
* ``rerank-caliber-x``: CALIBER-X, the text tower's adapter with the recording as its context.
* ``rerank-caliber-x-lists``: the same with ``Candidates``: one right script among three wrong ones.
* ``rerank-wander``: Wander's product of text states and frames, beside a linear head on both (both encoders frozen).
* ``rerank-cola``: CoLA in MiniLM and in Whisper's two uppermost blocks, which exchange a vector per pair in lockstep;
  those below run once, and every third block of MiniLM belongs to one of Whisper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Bernoulli
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import CrossAttention, Delta, Hypernetwork, MeanField
from bayes_adapters.heads import BayesianTowers
from bayes_adapters.heads.two_layer import TwoLayerHead
from bayes_adapters.likelihoods import Candidates, Contrastive, Likelihood
from bayes_adapters.models import CoLA, ConcatCore, ConcatLoRA, FusionLoRA, StochasticCore
from examples.retrieval.data import Task
from examples.studies.body_signals.adapters import Encoded
from examples.studies.wander.model import WanderBeside

DIM = 64
"""Numbers of an embedding."""
RANK, ALPHA, CONTEXT_DIM, PRIOR_SCALE = 8, 16.0, 64, 0.2
"""They are those of :mod:`examples.studies.verify_prompts.methods`."""
TARGETS = ["query", "value"]
BASE = "towers"
"""The dual encoder whose first candidates are ranked again."""
Built = tuple[AdapterModel, AdapterGuide]


@dataclass(frozen=True)
class Method:
    """One row.

    Args:
        build: task → model and guide; None needs no training.
        random: whether draws differ.
        encoded: whether no encoder changes, so that MiniLM runs once per script, not once per step.
        members: how many are trained, from seeds of their own, and averaged.
        pairs: whether it scores pairs, and so ranks again; otherwise each side is embedded alone.
        halved: whether Whisper's uppermost blocks run for every pair, on what those below say.
        lists: whether its pairs are lists with one right script, of which one is chosen.
        tries: (learning rate, KL weight) of each run, of which the validation recordings choose one.
    """

    build: Callable[[Task], Built] | None
    random: bool = False
    encoded: bool = True
    members: int = 1
    pairs: bool = False
    lists: bool = False
    halved: bool = False
    tries: tuple[tuple[float, float], ...] = ((1e-3, 0.0),)


def encoders(task: Task, encoded: bool) -> nn.ModuleDict:
    """Return the two encoders: Whisper has run; MiniLM has too, or is a copy to be adapted."""
    text = task.backbone()
    own = Encoded(hidden_width(text)) if encoded else text
    return nn.ModuleDict({"text": own, "audio": Encoded(task.width)})


def _count(task: Task) -> int:
    return len(task.splits["train"].keys)


def _normal() -> dist.Normal:
    return dist.Normal(torch.tensor(0.0), torch.tensor(PRIOR_SCALE))


def _towers(task: Task, bayesian: bool = False) -> Built:
    own: dict[str, Any] = {"head": BayesianTowers(), "num_data": _count(task)} if bayesian else {}
    model = ConcatLoRA(encoders(task, True), Contrastive(DIM), targets=None, **own)
    return model, Delta(model)


def _concat_lora(task: Task) -> Built:
    model = ConcatLoRA(encoders(task, False), Contrastive(DIM), targets=TARGETS, rank=RANK, alpha=ALPHA)
    return model, Delta(model)


def _concat_core(task: Task) -> Built:
    own: dict[str, Any] = {"targets": TARGETS, "rank": RANK, "alpha": ALPHA, "prior": _normal()}
    model = ConcatCore(encoders(task, False), Contrastive(DIM), num_data=_count(task), **own)
    return model, MeanField(model)


def _fusion(task: Task) -> Built:
    model = FusionLoRA(task.backbone(), Bernoulli(), context_dim=task.width, rank=RANK, alpha=ALPHA)
    return model, Delta(model)


def _caliber_x(task: Task, likelihood: Callable[[], Likelihood] = Bernoulli, **options: Any) -> Built:
    model = StochasticCore(task.backbone(), likelihood(), rank=RANK, alpha=ALPHA, prior=_normal())
    return model, CrossAttention(model, context_dim=task.width, dim=CONTEXT_DIM, **options)


def _wander(task: Task) -> Built:
    size: dict[str, Any] = {"fusion_rank": 8, "terms": 2, "cp": "product_of_sums"}
    lengths = {"text": 12, "audio": 43}  # rows of the factors: tokens and frames in the mean
    model = WanderBeside(encoders(task, True), Bernoulli(), lengths=lengths, num_data=_count(task), **size)
    return model, Delta(model)


def _cola(task: Task) -> Built:
    nets = nn.ModuleDict({"text": task.backbone(), "audio": task.upper()})
    model = CoLA(nets, Bernoulli(), rank=RANK, alpha=ALPHA, depths="spread", head=TwoLayerHead(CONTEXT_DIM))
    return model, Hypernetwork(model, gamma=16)


RATES = tuple((rate, 0.0) for rate in (3e-4, 1e-3, 3e-3))
WEIGHTS = tuple((3e-3, weight) for weight in (1e-3, 1e-2, 1e-1))
_ADAPTED: dict[str, Any] = {"encoded": False, "tries": ((1e-3, 0.0),)}
_PAIRS: dict[str, Any] = {"encoded": False, "pairs": True, "tries": ((1e-3, 0.0),)}
_LOCAL: dict[str, Any] = {"encoded": False, "pairs": True, "random": True, "tries": ((1e-3, 1e-4),)}

METHODS: dict[str, Method] = {
    "ridge": Method(None),
    BASE: Method(_towers, tries=RATES),
    "towers-ensemble": Method(_towers, tries=RATES, members=5, random=True),
    "bayesian-towers": Method(partial(_towers, bayesian=True), random=True, tries=WEIGHTS),
    "concat-lora": Method(_concat_lora, **_ADAPTED),
    "concat-lora-ensemble": Method(_concat_lora, members=3, random=True, **_ADAPTED),
    "concat-core": Method(_concat_core, encoded=False, random=True, tries=((1e-3, 1e-2),)),
    "rerank-fusion": Method(_fusion, **_PAIRS),
    "rerank-cross-attention": Method(partial(_caliber_x, scale=None), **_PAIRS),
    "rerank-caliber-x": Method(_caliber_x, **_LOCAL),
    "rerank-caliber-x-lists": Method(partial(_caliber_x, likelihood=Candidates), lists=True, **_LOCAL),
    "rerank-wander": Method(_wander, pairs=True, tries=RATES),
    "rerank-cola": Method(_cola, halved=True, **_PAIRS),
}
"""Name → method: the order of the tables."""


def find(name: str) -> Method:
    """Return a method by name.

    Raises:
        ConfigError: it does not exist.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
