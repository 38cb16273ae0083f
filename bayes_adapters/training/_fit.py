"""``fit``: train a model and its guide on the ELBO, reproducibly, and continue where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bayes_adapters.data.batch import Batch
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_one_device, require_pair
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.training import _data
from bayes_adapters.training._loop import Loop
from bayes_adapters.training._optimizer import OptimizerLike
from bayes_adapters.training._process_checks import check_samplers, require_group
from bayes_adapters.training._processes import Processes
from bayes_adapters.training._progress import Report
from bayes_adapters.training._settings import OWN, Mode, OnStep, RecipeLike, resolve
from bayes_adapters.training._state import copy_into


@dataclass(frozen=True)
class FitResult:
    """What a run did.

    Args:
        history: one dictionary per epoch, metric → number; ``epoch`` counts from 0. nll and kl are nats per datum, and
            kl has its weight in it: ``loss = nll + kl``.
        best_epoch: position in ``history`` of the monitored metric's best value; None where nothing was monitored.
        best_value: that value.
        steps: optimiser steps taken, those before a resume included.
        stopped: ``"completed"`` (epochs or steps done) or ``"early_stopping"``.
    """

    history: list[dict[str, float]]
    best_epoch: int | None
    best_value: float | None
    steps: int
    stopped: Literal["completed", "early_stopping"]


def fit(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Iterable[Batch] | Batch,
    *,
    recipe: RecipeLike | str | None = OWN,
    epochs: int | None = None,
    max_steps: int | None = None,
    optimizer: OptimizerLike | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    kl_weight: float | KLSchedule | None = None,
    kl_mode: KLMode | str | None = None,
    num_particles: int = 1,
    clip_norm: float | None = None,
    accumulate: int = 1,
    validation: Iterable[Batch] | Batch | None = None,
    num_samples: int | None = None,
    evaluate: Callable[[Any, Any], Mapping[str, float]] | None = None,
    monitor: str | None = "auto",
    mode: Mode | str = Mode.MIN,
    patience: int | None = None,
    restore_best: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    autocast: torch.dtype | None = None,
    recompute: bool = False,
    log_every: int = 10,
    on_step: OnStep | None = None,
) -> FitResult:
    """Minimise the negative ELBO per datum over the trainable parameters of model and guide, in place.

    Formula: a step over micro-batches of B_1 … B_k examples minimises ``Σ_i (B_i / Σ_j B_j) · loss_i``, with loss_i
    from :class:`bayes_adapters.ELBO`; the weights sum to 1, so splitting a batch changes neither nll nor kl.

    Under torchrun, after ``torch.distributed.init_process_group()``, call it alike in every process, with the same
    data: each batch is shared among the processes and the gradients are added, so that losses and gradients are those
    of one process, to rounding. All of them see one draw of the weights per step
    (:class:`~bayes_adapters.inference.step_noise.StepNoise`); dropout, flipout and local reparametrisation are drawn in
    each. The first process reports and writes, and its weights are those that all begin with; all read its checkpoint.

    Each epoch's noise is a function of (seed, epoch); the same seed gives bitwise the same numbers on a CPU, also
    across an interruption. Afterwards the generators of torch, Python and numpy, every module's train/eval mode and
    ``requires_grad`` are as before. What the frozen backbone averages as it runs (batch norms) stays as it is. Other
    threads that call ``fit`` or ``predict`` wait until the run is over.

    Args:
        model: the model.
        guide: the guide made for it, on the same device.
        data: what can be read once per epoch: a list of :class:`Batch`, :func:`bayes_adapters.training.batches`, a
            DataLoader that yields Batch. ``set_epoch(epoch)`` of it, or its data set's or sampler's, is called with
            0, 1, … where it exists. What ``identity()`` of it or its data set returns, a dictionary of JSON (size,
            seed, checksum, …, the same in every epoch), must be the same for a run to be continued; without it only
            the number of batches and what batches() and a DataLoader know are compared. So it is with ``validation``.
        recipe: how a system was published to be trained: it gives those of optimizer, scheduler, kl_weight, kl_mode,
            clip_norm, num_samples, max_steps and on_step that are None. ``"own"`` is the recipe of the system that
            :func:`bayes_adapters.systems.build` made, ``guide.recipe``; with an optimizer of your own its scheduler is
            left out, with a kl_weight its kl_mode, and the log begins with what was taken from it. A pair that was put
            together by hand, or loaded, has none. Another is said as ``SYSTEMS["c-lora"].training``. None is none: the
            ELBO, by AdamW.
        epochs: passes over the data.
        max_steps: optimiser steps; without a recipe one of the two has to be given, and the first one reached counts.
            An epoch cut short still ends with validation.
        optimizer: an instance over exactly the trainable parameters (in any groups), or parameters → optimizer; None is
            the recipe's, or AdamW with learning rate 1e-3.
        scheduler: optimizer → learning-rate scheduler, stepped after every optimiser step.
        kl_weight: w, a number or a schedule step → w; None is the recipe's, or 1, the ELBO, which regularises much
            more strongly than the weights of most recipes. Each epoch's log says it.
        kl_mode: ``"full"`` or ``"per_token_mean"``; None is the recipe's, or the first.
        num_particles: draws of the latents per loss.
        clip_norm: the largest 2-norm of the whole gradient.
        accumulate: micro-batches per optimiser step; an epoch's last step takes what is left.
        validation: batches with targets; ``val_nll`` = −mean log posterior predictive density, nats, over examples.
        num_samples: draws for ``val_nll``; None is the recipe's, or 8.
        evaluate: (model, guide) → metric → number, run in eval mode without gradients at each epoch's end.
        monitor: the metric that decides which epoch is best; ``"auto"`` is val_nll with ``validation`` and nothing
            without; None watches nothing.
        mode: ``"min"``, or ``"max"`` for a metric that ``monitor`` names.
        patience: stop after this many epochs in a row without a better value.
        restore_best: end with the best epoch's weights rather than the last one's, where a metric is monitored.
        checkpoint: a directory of this run's own; ``checkpoint.safetensors`` in it is replaced at each epoch's end, and
            on Ctrl-C and SIGTERM (Slurm, Kubernetes) where ``fit`` runs in the main thread.
        checkpoint_every: replace it after every so many optimiser steps as well.
        resume: continue from that file if there is one; a finished run returns at once. More epochs, steps or patience
            than before are allowed, every other setting must be the same; a KL schedule is compared by its values at
            some steps, a scheduler by its ``state_dict()``, and what functions do inside cannot be. False starts anew
            and overwrites it.
        seed: any integer.
        progress: a bar on a terminal, one line per epoch on stderr elsewhere. False is silent.
        tensorboard: a directory for event files.
        autocast: ``torch.bfloat16`` or None. Variational parameters stay float32.
        recompute: see :class:`bayes_adapters.ELBO`: less memory for cores with a draw per token, the same numbers.
        log_every: statistics of posterior scales and of draws, which cost time, are taken at every such step of an
            epoch from the first on; TensorBoard gets these steps.
        on_step: ``(step, model, guide, optimizer)``, called after each optimiser step, ``step`` counting from 1; such
            as :class:`bayes_adapters.surgery.pruning.PruneSchedule`. It may take out ranks; the best epoch is then
            looked for among those after the last removal. It should depend on its arguments and ``state_dict()`` only,
            which, with ``load_state_dict()``, is kept in checkpoints where it exists. A run that took out ranks is
            continued by the model and guide it began with.

    Returns:
        A :class:`FitResult`. Its history has loss, nll, kl (weighted), kl_over_nll, kl_weight, lr (lr_1 … for further
        groups), grad_norm (before clipping) and examples_per_second, averaged over the epoch's examples; scale_mean,
        scale_min, scale_max where the guide has scales; attention_entropy (nats, on the epoch's first batch) where it
        attends; what the structure measures of its draws (``AdapterModel.measures``), such as PoLAR's stable_rank.

    Raises:
        ConfigError: settings that do not fit, an unknown monitor, or a checkpoint of another run (differences listed).
        DataError: data without batches, without targets, or used up after one epoch; or an epoch in which no batch has
            the context that model or guide reads.
        NonFiniteError: a loss or gradient is NaN or infinite; weights and optimiser are as before that step.
        AdapterFileError: a damaged checkpoint, or one that cannot be written.
        MissingResourceError: ``tensorboard`` is not installed.
        KeyboardInterrupt: raised again after the checkpoint is written, of SIGTERM too; weights are those of the last
            complete step.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.systems import SYSTEMS, build
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    >>> backbone = BertModel(BertConfig(vocab_size=40, **sizes))
    >>> data = Batch({"input_ids": torch.arange(40).reshape(8, 5)}, torch.tensor([0.0, 1.0] * 4))
    >>> model, guide = build("c-lora", backbone, Bernoulli())
    >>> guide.recipe == SYSTEMS["c-lora"].training
    True
    >>> result = fit(model, guide, [data[:4], data[4:]], max_steps=6, progress=False)  # trained as C-LoRA was
    >>> result.steps, [round(log["epoch"]) for log in result.history]
    (6, [0, 1, 2])
    """
    data, validation = _data.listed(data), _data.listed(validation)
    settings = resolve(dict(locals()))
    require_group()
    require_pair(model, guide)
    require_one_device(model, guide)
    processes = Processes(next(model.parameters()).device)
    check_samplers(_data.loader_parts(_data.source(data)), processes.together)
    elbo = ELBO(
        model,
        guide,
        kl_weight=settings.kl_weight,
        kl_mode=settings.kl_mode,
        num_particles=settings.num_particles,
        seed=settings.seed if processes.together else None,
    )
    _data.check_size(data, model)
    passes = settings.epochs if settings.max_steps is None else None
    data = _data.readable(data, "data", passes)
    validation = None if validation is None else _data.readable(validation, "validation", passes)
    loop = Loop(elbo, settings, data, validation, processes)
    with exclusive():
        if resume:
            loop.resume()
        loop.start()
        state, folder = loop.state, None if tensorboard is None or not processes.first else Path(tensorboard)
        shown = progress and processes.first
        with closing(Report(shown, epochs, _data.count(data), folder, state.step)) as report:
            if settings.from_recipe:
                report.note(f"from the recipe of the system: {settings.from_recipe}")
            if state.step == 0:
                loop.save()  # a state that no checkpoint can hold, or a folder nobody may write to, is found out here
            loop.run(report)
        if restore_best and state.best is not None:
            copy_into(loop.tensors, state.best)
    stopped: Literal["completed", "early_stopping"] = "completed" if loop.out_of_budget else "early_stopping"
    return FitResult(list(state.history), state.best_epoch, state.best_value, state.step, stopped)
