"""What a run in lock-step refuses before it starts, and of what is exchanged."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.errors import ConfigError, choice, missing_package, near_matches, unknown_name
from bayes_adapters.modalities._thread_state import READS_HOOKS
from bayes_adapters.modalities.taps import Side, Tap


def require_greenlet(use: str) -> ModuleType:
    """Return the module greenlet; raise :class:`MissingResourceError`, naming what needs it, where there is none."""
    try:
        return importlib.import_module("greenlet")
    except ImportError as error:
        raise missing_package(use, "greenlet", "cola") from error


def check_taps(
    modules: Mapping[str, nn.Module],
    calls: Mapping[str, Mapping[str, Any]],
    taps: Mapping[str, Sequence[Tap]],
    replayed: bool,
) -> None:
    """Raise :class:`ConfigError` for names, calls or taps that do not fit the modules.

    Args:
        modules: name → module.
        calls: name → keyword arguments.
        taps: name → taps.
        replayed: whether somebody notes what checkpointed layers find at their taps.
    """
    for name in [*calls, *taps]:
        if name not in modules:
            raise unknown_name("module", name, modules)
    missing = [name for name in modules if name not in calls]
    if missing:
        raise ConfigError(f"No call for {missing}: pass its keyword arguments, calls={{{missing[0]!r}: {{...}}}}.")
    for name, listed in taps.items():
        places: dict[tuple[str, str], int] = {}
        for tap in listed:
            choice(Side, "side of a tap", tap.side)
            if tap.step in places.values():
                raise ConfigError(f"{name!r} has two taps with step {tap.step}; each of a module's taps has its own.")
            if (tap.path, tap.side) in places:
                raise ConfigError(f"{name!r} has two taps at {tap}; one place has one tap.")
            places[tap.path, tap.side] = tap.step
            _require_place(name, modules[name], tap)
            if is_checkpointed(modules[name], tap):
                _require_replayable(name, modules, tap, replayed)


def _require_place(name: str, module: nn.Module, tap: Tap) -> None:
    try:
        module.get_submodule(tap.path)
    except AttributeError as error:
        paths = [path for path, _ in module.named_modules(remove_duplicate=False)]
        raise ConfigError(f"{name!r} has no submodule {tap.path!r}.{near_matches(tap.path, paths)}") from error


def is_checkpointed(module: nn.Module, tap: Tap) -> bool:
    """Whether a module on the way from ``module`` to the tap, both included, is trained with gradient checkpointing."""
    parts = tap.path.split(".") if tap.path else []
    way = [module.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    return any(m.training and getattr(m, "gradient_checkpointing", False) for m in way)


def _require_replayable(name: str, modules: Mapping[str, nn.Module], tap: Tap, replayed: bool) -> None:
    what = f"{name!r} is trained with gradient checkpointing, which runs {tap.path!r} a second time during backward"
    if not replayed:
        raise ConfigError(
            f"{what}, without the exchange. Pass pauses=Pauses() and run backward within its replayed(), or switch it "
            "off on this module."
        )
    if not READS_HOOKS:
        raise ConfigError(
            f"{what}. Encoders in lock-step need torch 2.8 for that: {torch.__version__} cannot say which tensors a "
            "paused module has kept. Update torch, or switch gradient checkpointing off."
        )
    if sum(module is modules[name] for module in modules.values()) > 1:
        raise ConfigError(f"{what}, and has two names: its layers cannot tell which of its calls they run again for.")


def check_replacements(step: int, given: Mapping[str, Tensor], replacements: Any) -> Mapping[str, Tensor]:
    """Return what ``exchange`` returned; raise :class:`ConfigError` unless it can stand in for what it was given."""
    if not isinstance(replacements, Mapping):
        raise ConfigError(
            f"exchange(step={step}) must return a mapping from names to replacements, {{}} to change nothing; it "
            f"returned a {type(replacements).__name__}."
        )
    for name, new in replacements.items():
        if name not in given:
            raise unknown_name(f"module at step {step} in what exchange returned", str(name), given)
        old = given[name]
        if not isinstance(new, Tensor) or (new.shape, new.dtype, new.device) != (old.shape, old.dtype, old.device):
            what = f"{tuple(new.shape)} {new.dtype} {new.device}" if isinstance(new, Tensor) else type(new).__name__
            raise ConfigError(
                f"exchange(step={step}) must replace {name!r} by a tensor of the same shape, dtype and device, "
                f"{tuple(old.shape)} {old.dtype} {old.device}; it returned {what}. Is a pooled vector not expanded, "
                "or a cast (tensor.to(old.dtype)) missing?"
            )
    return replacements


def require_ended(name: str, left: Sequence[Tap]) -> None:
    """Raise :class:`ConfigError` where a module ended with taps left that it did not reach."""
    if left:
        raise ConfigError(
            f"{name!r} ended without reaching {left[0]}. Its layer was not "
            "called in this pass: skipped (layer drop in training, early exit), run by its forward method "
            "instead of a call, or its weights are read by other code. Tap a layer that is always called, or "
            "set the config's layerdrop to 0."
        )


def require_order(name: str, taps: Sequence[Tap], place: int, reached: int) -> None:
    """Raise :class:`ConfigError` where a module arrived at a tap twice, or before an earlier one.

    Args:
        name: of the module.
        taps: of the module, in the order of their steps.
        place: number of the tap at which the module has arrived.
        reached: how many taps it has passed.
    """
    if place < reached:
        raise ConfigError(
            f"{name!r} reached {taps[place]} twice in one pass. Blocks that share weights (ALBERT) and "
            "chunked feed-forward (chunk_size_feed_forward) do so; tap a module that is called once."
        )
    if place > reached:
        raise ConfigError(
            f"{name!r} reached {taps[place]} before {taps[reached]}. Steps must "
            "increase in the order of execution: number the taps anew. If that order is right, the earlier layer "
            "was skipped in this pass (layer drop in training, early exit): set the config's layerdrop to 0."
        )


def no_tensor(name: str, tap: Tap, value: object) -> ConfigError:
    """Return the error for a tap that holds ``value``, which neither is a tensor nor begins with one."""
    return ConfigError(
        f"{name!r}: {tap} holds no tensor but a {type(value).__name__}. A tap needs a tensor, or a "
        "tuple or list that begins with one, as first argument (by position, or by the name of forward's first "
        "parameter) or as result. Tap a layer inside it."
    )
