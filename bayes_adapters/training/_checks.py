"""What ``fit`` refuses, and the checks that a step must pass before it changes a weight."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.errors import ConfigError, NonFiniteError, whole_number

_WIDE = (torch.float32, torch.float64)


def check_options(
    numbers: Mapping[str, int | None], functions: Mapping[str, object], clip_norm: float | None, autocast: object
) -> None:
    """Raise :class:`ConfigError` for options of ``fit`` that no model and no data could suit."""
    for name, value in numbers.items():
        if value is not None:
            whole_number(name, value)
    if torch.is_inference_mode_enabled():
        raise ConfigError("Train outside torch.inference_mode(): there is no gradient inside.")
    if numbers["epochs"] is None and numbers["max_steps"] is None:
        raise ConfigError("Say when to stop: pass epochs=…, max_steps=…, or both.")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ConfigError(f"{name} must be a function, see the docstring of fit; got {function!r}.")
    if clip_norm is not None and not clip_norm > 0:
        raise ConfigError(f"clip_norm must be positive; got {clip_norm}. None does not clip.")
    if autocast not in {None, torch.bfloat16}:
        raise ConfigError(
            f"autocast must be torch.bfloat16 or None; got {autocast!r}. float16 would need loss scaling."
        )


def check_checkpoint(directory: object, every: int | None, *data: Any) -> None:
    """Raise :class:`ConfigError` where there is no directory for ``every``, or where data cannot be continued."""
    if directory is None:
        if every is not None:
            raise ConfigError("checkpoint_every has no effect without checkpoint=, the directory to write into.")
        return
    for loader in data:
        if isinstance(loader, DataLoader) and loader.persistent_workers:
            raise ConfigError(
                "A DataLoader with persistent_workers=True cannot be continued exactly: its workers keep random states "
                "of their own from one epoch to the next, which no checkpoint sees. Pass persistent_workers=False, or "
                "checkpoint=None."
            )


def require_alone() -> None:
    """Raise :class:`ConfigError` where several processes train together: ``fit`` would synchronise nothing."""
    spread = torch.distributed
    together = spread.is_available() and spread.is_initialized() and spread.get_world_size() > 1
    world = spread.get_world_size() if together else os.environ.get("WORLD_SIZE", "1")
    if together or (str(world).isdecimal() and int(world) > 1):
        raise ConfigError(
            f"This is one of {world} processes (torchrun, WORLD_SIZE={world}), and fit trains in one: every process "
            "would train its own weights on its own share of the data. Write the loop by hand, with "
            "torch.nn.parallel.DistributedDataParallel(ELBO(model, guide)) as the loss; or start one process, without "
            "torchrun."
        )


def require_wide(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise :class:`ConfigError` for a parameter in half precision.

    bfloat16 has 8 bits of mantissa: an update below 1/256 of an entry is rounded away, and so is nearly every one.
    """
    narrow = [name for name, p in parameters.items() if p.dtype not in _WIDE]
    if narrow:
        raise ConfigError(
            f"{len(narrow)} trainable tensors have too few bits to be trained, such as {narrow[0]!r} in "
            f"{parameters[narrow[0]].dtype}: most updates would be rounded to nothing. Call model.float() and "
            "guide.float(), or convert the backbone alone, before the model is built: backbone.to(torch.bfloat16). "
            "autocast=torch.bfloat16 computes in half precision and keeps parameters in float32."
        )


def require_usable(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Raise :class:`ConfigError` if a step needs what fit does not give, or the scheduler is another optimiser's."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"{type(optimizer).__name__} computes the loss several times per step (a closure); fit computes it once. "
            "Take AdamW, SGD or another optimizer whose step() needs no argument."
        )
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConfigError("ReduceLROnPlateau steps on a metric; fit steps its scheduler after every optimiser step.")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ConfigError(
            f"The {type(scheduler).__name__} belongs to another optimizer, so it would have no effect. Pass a function "
            "that makes it of its argument: scheduler=lambda optimizer: StepLR(optimizer, 100)."
        )


@contextmanager
def gradients_flow(backbone: nn.Module) -> Iterator[None]:
    """Check the passes and gradients within the context: none may end in a layer of the frozen backbone.

    A frozen linear layer hands on gradients to what came before it. Some kernels for quantised weights do not (4-bit
    ones on a CPU, from the first pass without gradients on), and adapters before them would never move.

    Raises:
        ConfigError: a linear layer whose input needs a gradient returns an output that does not; or adapters took part
            and none of their parameters has a gradient at the end.
    """
    adapters = adapted_layers(backbone)
    ran: dict[str, list[nn.Parameter]] = {}

    def end(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Where the backbone itself computes without gradients, as under checkpointing, it means to.
            needs = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
            if needs and isinstance(output, Tensor) and not output.requires_grad:
                raise ConfigError(
                    f"No gradient passes the backbone's layer {path!r}, a {type(module).__name__}: its output does not "
                    "depend on its input as autograd sees it, so adapters before it would never move. Quantised "
                    "layers on a CPU do that once they were run without gradients: load the backbone again, in "
                    "bfloat16 or on a GPU."
                )

        return hook

    def note(path: str) -> Any:
        def hook(*_: Any) -> None:
            ran[path] = [p for p in adapters[path].parameters() if p.requires_grad]

        return hook

    with ExitStack() as stack:
        for path, module in backbone.named_modules():
            if dimensions(module) is not None:
                stack.callback(module.register_forward_hook(end(path)).remove)
            if path in adapters:
                stack.callback(module.register_forward_hook(note(path)).remove)
        yield
    trained = {path: own for path, own in ran.items() if own}
    if trained and all(p.grad is None for own in trained.values() for p in own):
        raise ConfigError(
            f"No adapter has a gradient after the first step of an epoch, in none of {len(trained)} layers, such as "
            f"{next(iter(trained))!r}: the loss does not depend on them. Is their output unused, as a pooler's is, or "
            "does the backbone detach its hidden states?"
        )


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients, a scalar.

    Raises:
        ConfigError: no parameter has a gradient.
    """
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        raise ConfigError(
            "The loss depends on no trainable parameter: every gradient is missing. Are the adapters disabled?"
        )
    return torch.nn.utils.get_total_norm(gradients)


def check_finite(step: int, values: Mapping[str, float], parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise :class:`NonFiniteError` unless loss, nll, kl and grad_norm are all finite.

    Args:
        step: the number of optimiser steps taken so far.
        values: the four numbers, by name.
        parameters: name → parameter, with gradients, to name the first bad one.
    """
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        return
    first = next(
        (name for name, p in parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())), None
    )
    where = (
        "No single gradient is non-finite: their norm overflows."
        if first is None
        else f"The first parameter with a non-finite gradient is {first!r}."
    )
    raise non_finite(step, ", ".join(bad), where)


def non_finite(step: int, what: str, where: str = "") -> NonFiniteError:
    """Build the error for step ``step``."""
    return NonFiniteError(
        f"Step {step}: {what}. {where}{' ' if where else ''}Likely causes: a learning rate that is too high, no "
        "clip_norm, a posterior scale that reached 0 or grew without bound (an infinite kl), or targets far outside "
        "the model's range (an infinite nll). No weight was changed by this step."
    )


def failed_forward(step: int, error: ValueError) -> NonFiniteError:
    """Build the error for a NaN that torch's distributions refuse as a parameter, before there is a loss."""
    where = str(error).partition(", but found invalid values")[0]
    return non_finite(step, "nll = nan", f"The forward pass already failed: {where}.")


def require_recipe(recipe: object) -> None:
    """Raise :class:`ConfigError` unless ``recipe`` gives options of ``fit``."""
    if not callable(getattr(recipe, "fit_options", None)):
        raise ConfigError(
            f"recipe must be a bayes_adapters.systems.Recipe, such as SYSTEMS['c-lora'].training; got {recipe!r}."
        )
