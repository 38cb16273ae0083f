"""The training loop: epochs, optimiser steps, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.analysis.diagnostics import collecting
from bayes_adapters.data.batch import Batch
from bayes_adapters.data.scales import warn_of_scales
from bayes_adapters.devices import float64
from bayes_adapters.errors import NonFiniteError
from bayes_adapters.inference._checks import refused_parameters
from bayes_adapters.inference.elbo import ELBO, ElboTerms
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating, predict
from bayes_adapters.likelihoods import Tasks
from bayes_adapters.surgery._ranks import shrink
from bayes_adapters.training import _checkpoint, _checks, _data, _log, _optimizer, _step_checks
from bayes_adapters.training._data_checks import too_few
from bayes_adapters.training._description import description, sampled
from bayes_adapters.training._interrupt import terminable, uninterrupted
from bayes_adapters.training._processes import Processes
from bayes_adapters.training._progress import Report
from bayes_adapters.training._random import Generators
from bayes_adapters.training._settings import Settings
from bayes_adapters.training._state import RunState, copy_into


class Loop:
    """One run.

    Args:
        elbo: of the model and its guide.
        settings: what :func:`bayes_adapters.training.fit` was asked for.
        data, validation: batches.
        processes: those that train together.
    """

    def __init__(
        self,
        elbo: ELBO,
        settings: Settings,
        data: Iterable[Batch],
        validation: Iterable[Batch] | None,
        processes: Processes,
    ) -> None:
        self.elbo, self.settings, self.data, self.validation = elbo, settings, data, validation
        self.processes = processes
        self.model: AdapterModel = elbo.model
        self.guide: AdapterGuide = elbo.guide
        self.reads = self.model.reads | self.guide.reads
        self.parameters = _optimizer.trainable(self.model, self.guide)
        self.optimizer = _optimizer.build(settings.optimizer, self.parameters)
        self.scheduler = None if settings.scheduler is None else settings.scheduler(self.optimizer)
        _checks.check_scheduler(self.scheduler, self.optimizer)
        if settings.monitor is not None and settings.evaluate is None:
            known = [*_log.STEP_METRICS, *_log.rates(self.optimizer), *_log.SOMETIMES]
            _checks.check_monitor(settings.monitor, known if validation is None else [*known, "val_nll"])
        self.device = next(self.model.parameters()).device
        self.generators = Generators({p.device for p in elbo.parameters()}, _data.own_generators(data))
        self.state = RunState()
        self.config: dict[str, Any] = {}
        if settings.checkpoint is not None:
            self.config = description(elbo, self.optimizer, self.scheduler, data, validation, settings)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything the run changes: parameters, and buffers (running means, say) outside the frozen backbone.

        With ``on_step`` also the prior's tensors, which shrink with the ranks.
        """
        frozen = ("backbone.",) if self.settings.on_step is not None else ("backbone.", "prior.")
        tensors: dict[str, Tensor] = {name: p.data for name, p in self.parameters.items()}
        tensors |= {f"model.{name}": b for name, b in self.model.named_buffers() if not name.startswith(frozen)}
        return tensors | {f"guide.{name}": b for name, b in self.guide.named_buffers()}

    def resume(self) -> None:
        """Take over the checkpoint's state, if there is one."""
        on_step, directory = self.settings.on_step, self.settings.checkpoint
        content = None if directory is None else _checkpoint.load(directory, self.config)
        if content is None:
            return
        if on_step is not None:
            shrink(self.model, self.guide, content["ranks"])
            if hasattr(on_step, "load_state_dict"):
                on_step.load_state_dict(content["on_step"])
        copy_into(self.tensors, content["weights"])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        self.state = RunState(**content["run"])

    def start(self) -> None:
        """Let all processes begin with the same weights."""
        if self.processes.together:
            self.processes.start(self.tensors, sampled(self.model.backbone), self.state.step)

    def save(self) -> None:
        """Write the state after the last complete step, in the first process."""
        on_step, directory = self.settings.on_step, self.settings.checkpoint
        if directory is None or not self.processes.first:
            return
        content = {
            "weights": self.tensors,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "run": vars(self.state),
        }
        if on_step is not None:
            content |= {"ranks": self.model.ranks, "on_step": getattr(on_step, "state_dict", dict)()}
        _checkpoint.save(directory, self.config, content)

    @property
    def out_of_budget(self) -> bool:
        """Whether the epochs or steps asked for are done."""
        settings, state = self.settings, self.state
        return state.epoch >= (settings.epochs or math.inf) or state.step >= (settings.max_steps or math.inf)

    def run(self, report: Report) -> None:
        """Train to the end; on Ctrl-C or SIGTERM write a checkpoint and raise it again."""
        # evaluating() gives every module its own mode back at the end
        with terminable(), self.generators.borrowed(), evaluating(self.elbo), torch.enable_grad():
            self.elbo.train()
            try:
                while not self.out_of_budget and self.state.stale < (self.settings.patience or math.inf):
                    self._epoch(report)
            except KeyboardInterrupt:
                self.save()
                raise
            finally:
                self.optimizer.zero_grad(set_to_none=True)

    def _epoch(self, report: Report) -> None:
        state, settings = self.state, self.settings
        self.generators.seed(settings.seed, state.epoch)
        _data.set_epoch(self.data, state.epoch)
        tasks = self.model.likelihood.each if isinstance(self.model.likelihood, Tasks) and not state.epoch else ()
        stream = _data.read(self.data, "data", state.epoch, self.reads, tasks)
        for used in range(state.batches):  # by a run that was interrupted; its noise goes on after them
            if next(stream, None) is None:
                raise too_few(state.epoch, state.batches, used)
        if state.generators:
            self.generators.set(state.generators, state.host)
        for group in iter(lambda: list(islice(stream, settings.accumulate)), []):
            due = len(state.records) % settings.log_every == 0
            record = self._step(group, due)
            report.step(state, record, due)
            if settings.checkpoint_every and state.step % settings.checkpoint_every == 0:
                self.save()
            if self.out_of_budget:
                break
        log = {"epoch": float(state.epoch), "step": float(state.step)} | _log.summarise(state.records, state.seconds)
        log = self.processes.agreed(log | self._evaluate(log))
        if settings.monitor is not None:
            _checks.check_monitor(settings.monitor, log)
        with uninterrupted():
            if settings.monitor is not None:
                state.watch(log[settings.monitor], settings.maximise, self.tensors)
            state.next_epoch(log)
        self.save()
        report.epoch(log)

    def _step(self, group: list[Batch], due: bool) -> dict[str, float]:
        """Take the gradient of Σ_i (B_i / Σ_j B_j) · loss_i over the micro-batches of ``group``, and a step by it."""
        started = time.perf_counter()
        state, settings = self.state, self.settings
        self.optimizer.zero_grad(set_to_none=True)
        total = sum(batch.size for batch in group)
        sums: list[Any] = [0, 0, 0]
        scales: list[tuple[float, dict[str, float]]] = []
        seen: dict[str, dict[str, float]] = {}
        if not state.records:
            self.processes.check_same(group)
        for i, batch in enumerate(self.processes.parts(group)):
            share = batch.size / total
            with ExitStack() as around:
                if self.processes.together:
                    around.enter_context(self.generators.of_part(settings.seed, state.step, self.processes.number, i))
                if not state.records and i == 0:
                    around.enter_context(_step_checks.gradients_flow(self.model.backbone))
                    seen = around.enter_context(collecting())
                terms = self._terms(batch, due)
                (terms.loss * share).backward()
            now = terms.loss.detach(), terms.nll.detach(), terms.kl.detach()
            sums = [whole + share * part for whole, part in zip(sums, now, strict=True)]
            if due:
                scales.append((share, {name: value for name, value in terms.log().items() if name in _log.SOMETIMES}))
        sums = self.processes.add(self.parameters.values(), sums)
        norm = _step_checks.gradient_norm(self.parameters)
        # One wait for the device: what must be finite and what is logged come over together.
        loss, nll, kl, size = torch.stack([v.float().to(self.device) for v in (*sums, norm)]).tolist()
        finite = {"loss": loss, "nll": nll, "kl": kl, "grad_norm": size}
        _step_checks.check_finite(state.step, finite, self.parameters)
        if state.step == 0:
            warn_of_scales(group[0], self.model.likelihood.advice(group[0].targets), self.reads)
        record = {"examples": float(total), "loss": loss, "nll": nll, "kl": kl, "kl_over_nll": _log.ratio(kl, nll)}
        record |= {"kl_weight": float(self.elbo.kl_weight(state.step)), "grad_norm": size}
        record |= _log.rates(self.optimizer)
        record |= _log.merged(scales)
        record |= {name: sum(sites.values()) / len(sites) for name, sites in seen.items()}
        with uninterrupted():
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(list(self.parameters.values()), settings.clip_norm, norm)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            # The step is over before anybody hears of it: whatever on_step raises, it is not taken again.
            state.step += 1
            state.batches += len(group)
            state.records.append(record)
            state.seconds += time.perf_counter() - started
            state.generators, state.host = self.generators.get()
            if settings.on_step is not None:
                settings.on_step(state.step, self.model, self.guide, self.optimizer)
                state.generators, state.host = self.generators.get()
        return record

    def _terms(self, batch: Batch, with_scales: bool) -> ElboTerms:
        try:
            with self._autocast():
                return self.elbo.terms(batch.to(self.device), self.state.step, with_scales=with_scales)
        except (ValueError, torch.linalg.LinAlgError, NonFiniteError) as error:  # type: ignore[attr-defined]
            # torch's distributions refuse NaN parameters before there is a loss to look at.
            where = refused_parameters(error)
            if where is None:
                raise
            where = f"The forward pass already failed: {where}."
            raise _step_checks.non_finite(self.state.step, "nll = nan", where) from error

    def _evaluate(self, log: dict[str, float]) -> dict[str, float]:
        """Return what validation and ``evaluate`` add to an epoch's log."""
        found: dict[str, float] = {}
        settings = self.settings
        if self.validation is not None:
            found["val_nll"] = self._validate(_data.read(self.validation, "validation", self.state.epoch))
        if settings.evaluate is not None:
            with evaluating(self.elbo), torch.no_grad():
                found |= _checks.checked_metrics(settings.evaluate(self.model, self.guide), log | found)
        return found

    def _validate(self, stream: Iterator[Batch]) -> float:
        """Return −mean log posterior predictive density over the examples, each predicted by one of the processes."""
        settings, whole, count = self.settings, 0.0, 0.0
        dealt = self.processes.dealt(stream)
        if (some := next(dealt, None)) is not None:
            mine, samples = chain([some], dealt), settings.num_samples
            with self._autocast():
                density = predict(self.model, self.guide, mine, num_samples=samples, seed=settings.seed).log_density
            if density is not None:  # read() lets only batches with targets pass
                whole, count = float(float64(density).sum()), float(len(density))
        whole, count = self.processes.total(whole, count)
        return -whole / count

    def _autocast(self) -> torch.autocast:
        dtype = self.settings.autocast
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
