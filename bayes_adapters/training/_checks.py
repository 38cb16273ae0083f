"""What ``fit`` refuses before it trains: options, optimisers, schedulers, and metrics that nobody logs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from bayes_adapters.errors import ConfigError, near_matches, whole_number
from bayes_adapters.training._data import source

_COUNTS = ("epochs", "max_steps", "accumulate", "num_samples", "patience", "log_every", "checkpoint_every")
_FUNCTIONS = ("scheduler", "evaluate", "on_step")
_WIDE = (torch.float32, torch.float64)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for options of ``fit``, by name, that no model and no data could suit."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in _COUNTS:
        whole_number(name, given.get(name, 1))
    for name in _FUNCTIONS:
        if not callable(given.get(name, print)):
            raise ConfigError(f"{name} must be a function, see the docstring of fit; got {given[name]!r}.")
    if torch.is_inference_mode_enabled():
        raise ConfigError("Train outside torch.inference_mode(): there is no gradient inside.")
    if not given.get("clip_norm", 1.0) > 0:
        raise ConfigError(f"clip_norm must be positive; got {given['clip_norm']}. None does not clip.")
    if given.get("autocast", torch.bfloat16) is not torch.bfloat16:
        raise ConfigError(
            f"autocast must be torch.bfloat16 or None; got {given['autocast']!r}. float16 would need loss scaling."
        )
    if given.get("recipe", "own") != "own" and not callable(getattr(given["recipe"], "fit_options", None)):
        raise ConfigError(
            "recipe must be a bayes_adapters.systems.Recipe, such as SYSTEMS['c-lora'].training, 'own', which is that "
            f"of the system that build() made, or None for the ELBO by AdamW; got {given['recipe']!r}."
        )


def check_together(options: Mapping[str, Any], maximise: bool) -> None:
    """Raise :class:`ConfigError` for options that need one another: an end, a metric to watch, a checkpoint."""
    auto = options["monitor"] == "auto"
    if options["epochs"] is None and options["max_steps"] is None:
        raise ConfigError("Say when to stop: pass epochs=…, max_steps=…, or both.")
    if maximise and (auto or options["monitor"] is None):
        raise ConfigError(
            "mode='max' says that higher is better, and monitor= names no metric: 'auto' is val_nll, of which lower is "
            "better. Name one of evaluate=…, such as monitor='accuracy', or leave mode out."
        )
    if options["patience"] is not None and (options["validation"] if auto else options["monitor"]) is None:
        raise ConfigError(
            "patience has no metric to watch. Pass validation=…, or name one: monitor='loss', or one of evaluate=…."
        )
    if options["checkpoint"] is None and options["checkpoint_every"] is not None:
        raise ConfigError("checkpoint_every has no effect without checkpoint=, the directory to write into.")
    for data in map(source, (options["data"], options["validation"])):
        if options["checkpoint"] is not None and isinstance(data, DataLoader) and data.persistent_workers:
            raise ConfigError(
                "A DataLoader with persistent_workers=True cannot be continued exactly: its workers keep random states "
                "of their own from one epoch to the next, which no checkpoint sees. Pass persistent_workers=False, or "
                "checkpoint=None."
            )


def check_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise :class:`ConfigError` if nothing is trainable, or a parameter is in half precision.

    bfloat16 has 8 bits of mantissa: an update below 1/256 of an entry is rounded away, and so is nearly every one.
    """
    if not parameters:
        raise ConfigError("Neither model nor guide has a parameter with requires_grad=True: there is nothing to train.")
    narrow = [name for name, p in parameters.items() if p.dtype not in _WIDE]
    if narrow:
        raise ConfigError(
            f"{len(narrow)} trainable tensors have too few bits to be trained, such as {narrow[0]!r} in "
            f"{parameters[narrow[0]].dtype}: most updates would be rounded to nothing. Call model.float() and "
            "guide.float(), or convert the backbone alone, before the model is built: backbone.to(torch.bfloat16). "
            "autocast=torch.bfloat16 computes in half precision and keeps parameters in float32."
        )


def check_optimizer(optimizer: object, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise :class:`ConfigError` unless it trains all of ``parameters`` and nothing else, by a loss computed once."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer must be a torch.optim.Optimizer or a function parameters → Optimizer; got {optimizer!r}. "
            "Example: optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lacking = [name for name, p in parameters.items() if id(p) not in held]
    if lacking:
        raise ConfigError(
            f"The optimizer lacks {len(lacking)} trainable parameters: {', '.join(lacking[:4])}"
            f"{' …' if len(lacking) > 4 else ''}. Add them, or freeze them with requires_grad_(False). Was the "
            "optimizer made before the guide, or for another model?"
        )
    foreign = len(held - {id(p) for p in parameters.values()})
    if foreign:
        raise ConfigError(
            f"The optimizer holds {foreign} tensors that are not trainable parameters of this model and guide (frozen, "
            "or of another model). Build it from model.trainable_parameters().values() and guide.parameters()."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"{type(optimizer).__name__} computes the loss several times per step (a closure); fit computes it once. "
            "Take AdamW, SGD or another optimizer whose step() needs no argument."
        )


def check_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raise :class:`ConfigError` if a scheduler steps on a metric, or is another optimiser's."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConfigError("ReduceLROnPlateau steps on a metric; fit steps its scheduler after every optimiser step.")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ConfigError(
            f"The {type(scheduler).__name__} belongs to another optimizer, so it would have no effect. Pass a function "
            "that makes it of its argument: scheduler=lambda optimizer: StepLR(optimizer, 100)."
        )


def check_monitor(monitor: str, names: Iterable[str]) -> None:
    """Raise :class:`ConfigError`, listing what exists, unless ``monitor`` is among ``names``."""
    known = [name for name in names if name not in {"epoch", "step"}]
    if monitor not in known:
        raise ConfigError(
            f"monitor={monitor!r} is not in the log.{near_matches(monitor, known)} The log has: {', '.join(known)}. "
            "val_nll needs validation=…; metrics of your own come from evaluate=…; monitor=None watches nothing."
        )


def checked_metrics(found: object, log: Collection[str]) -> dict[str, float]:
    """Return what ``evaluate`` found as numbers.

    Raises:
        ConfigError: not a mapping from names to numbers, or a name that the log already has.
    """
    if not isinstance(found, Mapping):
        raise ConfigError(f"evaluate must return a dict of metric → number; got {type(found).__name__}.")
    out: dict[str, float] = {}
    for name, value in found.items():
        if name in log:
            raise ConfigError(
                f"evaluate returned {name!r}, which the log already has. Name it otherwise, for example 'my_{name}'."
            )
        try:
            out[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"evaluate returned {name!r} = {str(value)[:60]}, which is not a number.") from error
    return out
