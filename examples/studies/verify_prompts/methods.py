"""The compared methods: each a model and a guide on the same backbone, rank and head.

To add one, write a function ``Build -> (model, guide)`` and a line in :data:`METHODS`. What is not the same for all
methods is said there (:class:`Method`); epochs, batches, learning rate and the rule that picks an epoch are the same.

KL weights. Local cores, with one KL a pair, share the weight of the settings (1e-4 per nat), CoCo-LoRA, fixed-E and
Bayesian CoLA included: for these three nothing else was tried. A posterior over weights counts its KL once per data
set, and w = 1 is the ELBO. Tried with seed 0 on ``split_seed=1``, validation pairs only, 6 epochs (val NLL of the best
epoch, nats):

    blob     w = 1: 0.6925    w = 0.01: 0.6931
    scalabl  w = 1: 0.6867    w = 0.1:  0.6867

That decides nothing, nor can it: wrong scripts are drawn from the right ones, so a script alone says nothing about the
answer, and what reads text only can do no better than ln 2 = 0.693 but by chance. The ELBO's weight was kept. CoLA's Φ
is a point mass, trained without KL as in its paper. TFB searches its one number on the validation pairs, without
labels.

Every method has a LoRA beside it that trains as many numbers, within 8 %: one of another rank at the same α, with the
audio where the method reads it. ``lora-text`` (74,113) is as large as MC-dropout, fixed-E, ScalaBL and TFB,
``-r12`` (110,977) as BLoB, ``-r20`` (184,705) as C-LoRA; ``lora-fusion`` (271,233) as CALIBER with shared keys and
values, ``-r12`` (308,097) as CoCo-LoRA, ``-r36`` (529,281) as CALIBER-G, ``-r68`` (824,193) as CALIBER-X, and ``-r144``
(1,524,609) as CoLA and Bayesian CoLA.

Controls of CALIBER. ``cross-attention`` is CALIBER-X without a posterior: the core is the network's mean, and nothing
is drawn or weighed. ``caliber-x-fusion`` is CALIBER-X on top of late fusion, with its density of frames, so that
the two differ in the head alone; ``cross-attention-fusion`` is that without a posterior. (Seed 0 of
``caliber-x-fusion`` was also measured with the density of the frames' moments, which widens more of the clean
recordings, clean AUC .909 for .929, and without any density, .937.) ``lora-fusion-temperature`` is late fusion whose
answers are scaled by one temperature, fitted on the validation pairs, ``caliber-x-fusion-temperature`` is that of
``caliber-x-fusion``, fitted on the mean of as many draws, of the same seed, as are taken at test, and ``density`` is
late fusion whose uncertainty is the density of the training frames alone, and ``process-fusion`` late fusion, trained,
with a Gaussian process on its hidden units in the place of its last layer. ``caliber-x-fusion-fitted`` is
``caliber-x-fusion``, trained alike, with two numbers fitted on the validation pairs: how far recordings unlike those of
training widen the posterior (:func:`~examples.studies.verify_prompts.after.widening`; the demo's 1.0 was chosen to tell
foreign speech apart), then a temperature. ``caliber-x-fusion-tuned`` is that with a tenth of the KL weight, which was
chosen on the validation pairs too, with seed 0 (best NLL of an epoch): 1e-4 .4255, 1e-5 .4031, 1e-5 with the prior
N(0, 1) .4426.

All but the last three adapt query and value of the text encoder's layers. CoLA, Bayesian CoLA and ConcatLoRA adapt the
six linear layers of every block of both encoders, Whisper's as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Bernoulli, systems
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Contextual, CrossAttention, Delta, PooledContext
from bayes_adapters.modalities.blocks import blocks_of
from bayes_adapters.models import ConcatLoRA, FusionCore, FusionLoRA, LoRA, StochasticCore
from bayes_adapters.reliability import Reliability
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.surgery.training_free import bayesianise
from examples.studies.verify_prompts import after

RANK, ALPHA, CONTEXT_DIM = 8, 16.0, 64


@dataclass(frozen=True)
class Build:
    """What a method is built from.

    Args:
        backbone: the frozen text encoder, or for methods that hear an ``nn.ModuleDict`` of ``text`` and ``audio``;
            changed in place.
        frame_width: d_a of the audio frames.
        prior_scale: β of the prior N(0, β²) on the cores, and on BLoB's A.
        reliability: of guides that read frames, with the density of the training frames; None trusts every recording.
        num_data: N, the number of training pairs; posteriors over weights have one KL per N and need it.
        options: of every model on a text encoder alone: its layers and pooling, where they are not the usual.
    """

    backbone: nn.Module
    frame_width: int
    prior_scale: float = 0.2
    reliability: Reliability | None = None
    num_data: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def context(self) -> dict[str, Any]:
        """Options of the guides that read frames."""
        return {"context_dim": self.frame_width, "dim": CONTEXT_DIM, "reliability": self.reliability}


def _random_core(build: Build) -> StochasticCore:
    prior = _normal(build.prior_scale)
    return StochasticCore(build.backbone, Bernoulli(), rank=RANK, alpha=ALPHA, prior=prior, **build.options)


def _lora_text(build: Build, rank: int = RANK) -> tuple[AdapterModel, AdapterGuide]:
    model = LoRA(build.backbone, Bernoulli(), rank=rank, alpha=ALPHA, **build.options)
    return model, Delta(model)


def _lora_fusion(build: Build, rank: int = RANK) -> tuple[AdapterModel, AdapterGuide]:
    # α stays when the rank grows: with α/r kept instead, three of five seeds of rank 144 stayed at chance
    width = build.frame_width
    model = FusionLoRA(build.backbone, Bernoulli(), context_dim=width, rank=rank, alpha=ALPHA, **build.options)
    return model, Delta(model)


def _c_lora(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, Contextual(model)


def _caliber_g(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, PooledContext(model, **build.context())


def _caliber_x(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, CrossAttention(model, **build.context())


def _caliber_shared_kv(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, CrossAttention(model, share_kv=True, **build.context())


def _cross_attention(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, CrossAttention(model, scale=None, **build.context())


def _fused(build: Build, **options: Any) -> tuple[AdapterModel, AdapterGuide]:
    own: dict[str, Any] = {"context_dim": build.frame_width, "rank": RANK, "alpha": ALPHA}
    model = FusionCore(build.backbone, Bernoulli(), prior=_normal(build.prior_scale), **own, **build.options)
    return model, CrossAttention(model, **options, **build.context())


def _system(name: str, build: Build, **options: Any) -> tuple[AdapterModel, AdapterGuide]:
    """A published system with this comparison's rank and scale in the place of its own."""
    own = {"rank": RANK, "alpha": ALPHA, **build.options, **options}
    return systems.build(name, build.backbone, Bernoulli(), num_data=build.num_data, **own)


def _normal(scale: float) -> dist.Normal:
    return dist.Normal(torch.tensor(0.0), torch.tensor(scale))


def _coco_lora(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    return _system("coco-lora", build, prior=_normal(build.prior_scale), **build.context())


def _fixed_e(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    return _system("fixed-e", build, prior=_normal(build.prior_scale))


def _mc_dropout(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    return _system("mc-dropout", build)


def _blob(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    return _system("blob", build, prior=_normal(build.prior_scale))


def _scalabl(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    return _system("scalabl", build)


def _training_free(model: AdapterModel, guide: AdapterGuide, run: after.Finishing) -> tuple[AdapterModel, AdapterGuide]:
    anchors: Any = run.validation
    new, posterior, _ = bayesianise(model, guide, anchors, relative_to="loss", seed=run.seed)  # type: ignore[arg-type]
    return new, posterior


def _cola(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    return _system("cola", build, depths="spread")


def _bayesian_cola(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    return _system("bayesian-cola", build, depths="spread")


def _concat_lora(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    blocks = blocks_of(build.backbone)  # type: ignore[arg-type]
    targets = [f"{name}.{path}" for name, own in blocks.items() for block in own for path in block.linears]
    model = ConcatLoRA(build.backbone, Bernoulli(), targets=targets, rank=RANK, alpha=ALPHA)
    return model, Delta(model)


Judged = Callable[[after.Validated], after.Judge]
"""What makes a judge after training."""


Finish = Callable[[AdapterModel, AdapterGuide, after.Finishing], tuple[AdapterModel, AdapterGuide]]
"""What is done after training: → the pair to predict with."""


@dataclass(frozen=True)
class Method:
    """A row of the comparison, and what is its own about it.

    Args:
        build: makes model and guide.
        kl_weight: weight of the KL, a number or a schedule; None is the one of the settings.
        random: whether predictions differ from draw to draw; otherwise one pass is all there is to average.
        random_in_training: whether they do before ``finish``, where an epoch is chosen.
        reads_frames: whether its guide reads the audio's frames, and can weigh how far they are from those of training.
        hears: whether it adapts the speech encoder too, and so needs mel features; see
            :mod:`examples.studies.verify_prompts.heard`.
        finish: what is done after training, if anything.
        judge: makes what is done with each prediction, if anything.
    """

    build: Callable[[Build], tuple[AdapterModel, AdapterGuide]]
    kl_weight: float | KLSchedule | None = None
    random: bool = True
    random_in_training: bool = True
    reads_frames: bool = False
    hears: bool = False
    finish: Finish | None = None
    judge: Judged | None = None


METHODS: dict[str, Method] = {
    "lora-text": Method(_lora_text, random=False),
    "lora-text-r12": Method(partial(_lora_text, rank=12), random=False),  # as large as blob
    "lora-text-r20": Method(partial(_lora_text, rank=20), random=False),  # as large as c-lora
    "lora-fusion": Method(_lora_fusion, random=False),
    "lora-fusion-r12": Method(partial(_lora_fusion, rank=12), random=False),  # as large as coco-lora
    "lora-fusion-r36": Method(partial(_lora_fusion, rank=36), random=False),  # as large as caliber-g
    "lora-fusion-r68": Method(partial(_lora_fusion, rank=68), random=False),  # as large as caliber-x
    "lora-fusion-r144": Method(partial(_lora_fusion, rank=144), random=False),  # as large as cola
    "c-lora": Method(_c_lora),
    "caliber-g": Method(_caliber_g, reads_frames=True),
    "caliber-x": Method(_caliber_x, reads_frames=True),
    "caliber-shared-kv": Method(_caliber_shared_kv, reads_frames=True),
    "coco-lora": Method(_coco_lora, reads_frames=True),
    "fixed-e": Method(_fixed_e),
    "mc-dropout": Method(_mc_dropout),
    "blob": Method(_blob, kl_weight=1.0),
    "scalabl": Method(_scalabl, kl_weight=1.0),
    "caliber-x-fusion": Method(_fused, reads_frames=True),
    "caliber-x-fusion-fitted": Method(_fused, reads_frames=True, finish=after.widening, judge=after.temperature),
    "caliber-x-fusion-tuned": Method(
        _fused, kl_weight=1e-5, reads_frames=True, finish=after.widening, judge=after.temperature
    ),
    "cross-attention": Method(_cross_attention, kl_weight=0.0, random=False),
    "cross-attention-fusion": Method(partial(_fused, scale=None), kl_weight=0.0, random=False),
    "lora-fusion-temperature": Method(_lora_fusion, random=False, judge=after.temperature),
    "caliber-x-fusion-temperature": Method(_fused, reads_frames=True, judge=after.temperature),
    "process-fusion": Method(_lora_fusion, random_in_training=False, finish=after.process),
    "density": Method(_lora_fusion, random=False, judge=after.density_alone),
    "tfb": Method(_lora_text, random_in_training=False, finish=_training_free),
    "concat-lora": Method(_concat_lora, random=False, hears=True),
    "cola": Method(_cola, kl_weight=0.0, random=False, hears=True),
    "bayesian-cola": Method(_bayesian_cola, hears=True),
}
"""Name → method: the order of the tables."""

DETERMINISTIC = frozenset(name for name, method in METHODS.items() if not method.random)


def find(method: str) -> Method:
    """Return a method by name.

    Raises:
        ConfigError: it does not exist.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method]


def build(method: str, parts: Build) -> tuple[AdapterModel, AdapterGuide]:
    """Build ``method``'s model and guide.

    Raises:
        ConfigError: the method does not exist.
    """
    return find(method).build(parts)
