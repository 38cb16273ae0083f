"""The training loop: epochs, optimiser steps, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.analysis.diagnostics import collecting
from bayes_adapters.data.batch import Batch
from bayes_adapters.data.scales import warn_of_scales
from bayes_adapters.devices import float64
from bayes_adapters.errors import NonFiniteError
from bayes_adapters.inference.elbo import ELBO, ElboTerms
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating, predict
from bayes_adapters.surgery._ranks import shrink
from bayes_adapters.training import _checkpoint, _checks, _data, _log, _optimizer
from bayes_adapters.training._data_checks import too_few
from bayes_adapters.training._interrupt import terminable, uninterrupted
from bayes_adapters.training._monitor_checks import check_monitor, checked_metrics
from bayes_adapters.training._progress import Report
from bayes_adapters.training._random import Generators
from bayes_adapters.training._settings import OnStep, Settings
from bayes_adapters.training._state import RunState, copy_into


class Loop:
    """One run; see :func:`bayes_adapters.training.fit` for what the parts are."""

    def __init__(
        self,
        elbo: ELBO,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        data: Iterable[Batch],
        validation: Iterable[Batch] | None,
        evaluate: Callable[[Any, Any], Mapping[str, float]] | None,
        on_step: OnStep | None,
        settings: Settings,
        config: dict[str, Any],
    ) -> None:
        self.elbo, self.optimizer, self.scheduler = elbo, optimizer, scheduler
        self.data, self.validation, self.evaluate = data, validation, evaluate
        self.on_step, self.settings, self.config = on_step, settings, config
        self.model: AdapterModel = elbo.model
        self.guide: AdapterGuide = elbo.guide
        self.parameters = _optimizer.trainable(self.model, self.guide)
        self.device = next(self.model.parameters()).device
        devices = {p.device for module in (self.model, self.guide) for p in module.parameters()}
        self.generators = Generators(devices, _data.own_generators(data))
        self.state = RunState()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything the run changes: parameters, and buffers (running means, say) outside the frozen backbone.

        With ``on_step`` also the prior's tensors, which shrink with the ranks.
        """
        frozen = ("backbone.",) if self.on_step is not None else ("backbone.", "prior.")
        tensors: dict[str, Tensor] = {name: p.data for name, p in self.parameters.items()}
        tensors |= {f"model.{name}": b for name, b in self.model.named_buffers() if not name.startswith(frozen)}
        return tensors | {f"guide.{name}": b for name, b in self.guide.named_buffers()}

    def resume(self) -> None:
        """Take over the checkpoint's state, if there is one."""
        if self.settings.directory is None:
            return
        content = _checkpoint.load(self.settings.directory, self.config)
        if content is not None:
            if self.on_step is not None:
                shrink(self.model, self.guide, content["ranks"])
                if hasattr(self.on_step, "load_state_dict"):
                    self.on_step.load_state_dict(content["on_step"])
            copy_into(self.tensors, content["weights"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(content["scheduler"])
            self.state = RunState(**content["run"])

    def save(self) -> None:
        """Write the state after the last complete step."""
        if self.settings.directory is not None:
            content = {
                "weights": self.tensors,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "run": vars(self.state),
            }
            if self.on_step is not None:
                state: Any = getattr(self.on_step, "state_dict", dict)()
                content |= {"ranks": self.model.ranks, "on_step": state}
            _checkpoint.save(self.settings.directory, self.config, content)

    def run(self, report: Report) -> None:
        """Train to the end; on Ctrl-C or SIGTERM write a checkpoint and raise it again."""
        with terminable(), self.generators.borrowed(), _training(self.model, self.guide), torch.enable_grad():
            try:
                while not self.out_of_budget and not self.out_of_patience:
                    self._epoch(report)
            except KeyboardInterrupt:
                self.save()
                raise
            finally:
                self.optimizer.zero_grad(set_to_none=True)

    @property
    def out_of_budget(self) -> bool:
        """Whether the epochs or steps asked for are done."""
        counts = (self.settings.epochs, self.state.epoch), (self.settings.max_steps, self.state.step)
        return any(self._reached(limit, count) for limit, count in counts)

    @property
    def out_of_patience(self) -> bool:
        """Whether the monitored metric has not improved for ``patience`` epochs."""
        return self._reached(self.settings.patience, self.state.stale)

    @staticmethod
    def _reached(limit: int | None, count: int) -> bool:
        return limit is not None and count >= limit

    def _epoch(self, report: Report) -> None:
        state = self.state
        self.generators.seed(self.settings.seed, state.epoch)
        _data.set_epoch(self.data, state.epoch)
        stream = _data.read(self.data, "data", state.epoch, self.model.reads | self.guide.reads)
        self._skip(stream)
        while not self._reached(self.settings.max_steps, state.step):
            group = list(islice(stream, self.settings.accumulate))
            if not group:
                break
            due = len(state.records) % self.settings.log_every == 0
            record = self._step(group, due)
            report.step(state, record, due)
            if self.settings.checkpoint_every and state.step % self.settings.checkpoint_every == 0:
                self.save()
        log = self._epoch_log()
        with uninterrupted():
            self._watch(log)
            state.next_epoch(log)
        self.save()
        report.epoch(log)

    def _skip(self, stream: Iterator[Batch]) -> None:
        """Pass over the batches an interrupted epoch has used, and take up the noise where it stopped."""
        for used in range(self.state.batches):
            if next(stream, None) is None:
                raise too_few(self.state.epoch, self.state.batches, used)
        if self.state.generators:
            self.generators.set(self.state.generators, self.state.host)

    def _step(self, group: list[Batch], due: bool) -> dict[str, float]:
        started = time.perf_counter()
        state, settings = self.state, self.settings
        self.optimizer.zero_grad(set_to_none=True)
        total = sum(batch.size for batch in group)
        sums: list[Any] = [0, 0, 0]
        scales: list[tuple[float, dict[str, float]]] = []
        seen: dict[str, dict[str, float]] = {}
        for batch in group:
            share = batch.size / total
            with ExitStack() as first:
                if not state.records and batch is group[0]:
                    first.enter_context(_checks.gradients_flow(self.model.backbone))
                    seen = first.enter_context(collecting())
                terms = self._terms(batch, due)
                (terms.loss * share).backward()
            now = terms.loss.detach(), terms.nll.detach(), terms.kl.detach()
            sums = [whole + share * part for whole, part in zip(sums, now, strict=True)]
            if due:
                scales.append((share, {name: value for name, value in terms.log().items() if name in _log.SOMETIMES}))
        norm = _checks.gradient_norm(self.parameters)
        # One wait for the device: what must be finite and what is logged come over together.
        loss, nll, kl, size = torch.stack([torch.as_tensor(v).float().to(self.device) for v in (*sums, norm)]).tolist()
        _checks.check_finite(state.step, {"loss": loss, "nll": nll, "kl": kl, "grad_norm": size}, self.parameters)
        if state.step == 0:
            advice = self.model.likelihood.advice(group[0].targets)
            warn_of_scales(group[0], advice, self.model.reads | self.guide.reads)
        record = {"examples": float(total), "loss": loss, "nll": nll, "kl": kl, "kl_over_nll": _log.ratio(kl, nll)}
        record |= {"kl_weight": float(terms.kl_weight), "grad_norm": size}
        record |= {"lr" if i == 0 else f"lr_{i}": float(g["lr"]) for i, g in enumerate(self.optimizer.param_groups)}
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
            if self.on_step is not None:
                self.on_step(state.step, self.model, self.guide, self.optimizer)
                state.generators, state.host = self.generators.get()
        return record

    def _terms(self, batch: Batch, with_scales: bool) -> ElboTerms:
        try:
            with self._autocast():
                return self.elbo.terms(batch.to(self.device), self.state.step, with_scales=with_scales)
        except (ValueError, NonFiniteError) as error:
            # torch's distributions refuse NaN parameters with a ValueError before there is a loss to look at.
            said = error.__cause__ if isinstance(error, NonFiniteError) else error
            if not isinstance(said, ValueError) or "invalid values" not in str(said):
                raise
            raise _checks.failed_forward(self.state.step, said) from error

    def _autocast(self) -> torch.autocast:
        dtype = self.settings.autocast
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def _epoch_log(self) -> dict[str, float]:
        state = self.state
        log = {"epoch": float(state.epoch), "step": float(state.step)} | _log.summarise(state.records, state.seconds)
        if self.validation is not None:
            stream = _data.read(self.validation, "validation", state.epoch)
            with self._autocast():
                samples, seed = self.settings.num_samples, self.settings.seed
                density = predict(self.model, self.guide, stream, num_samples=samples, seed=seed).log_density
            if density is not None:  # read() lets only batches with targets pass
                log["val_nll"] = -float(float64(density).mean())
        if self.evaluate is not None:
            with evaluating(self.model, self.guide), torch.no_grad():
                log |= checked_metrics(self.evaluate(self.model, self.guide), log)
        return log

    def _watch(self, log: dict[str, float]) -> None:
        state, monitor = self.state, self.settings.monitor
        if monitor is None:
            return
        if state.best is not None and _shapes(state.best) != _shapes(self.tensors):
            state.best, state.best_epoch, state.best_value, state.stale = None, None, None, 0  # ranks were taken out
        check_monitor(monitor, log)
        sign = -1.0 if self.settings.maximise else 1.0
        value = log[monitor]
        if sign * value < (math.inf if state.best_value is None else sign * state.best_value):  # False for NaN
            state.best_epoch, state.best_value, state.stale = state.epoch, value, 0
            state.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        else:
            state.stale += 1


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


@contextmanager
def _training(model: AdapterModel, guide: AdapterGuide) -> Iterator[None]:
    """Train mode within, each module's own mode after."""
    before = [(m, m.training) for module in (model, guide) for m in module.modules()]
    try:
        model.train()
        guide.train()
        yield
    finally:
        for m, training in before:
            m.training = training
