"""The options of a constructor, and the error for one that does not exist; PEFT's words for them are known."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from bayes_adapters.errors import ConfigError, near_matches

PEFT_WORDS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "exclude_modules": "targets=Targets(names, exclude=...)",
    "layers_to_transform": "targets=Targets(names, layers=...)",
    "rank_pattern": "ranks, module path → rank, none above rank",
    "alpha_pattern": "alpha, one for all layers",
    "use_rslora": "alpha: the scale is alpha / rank, so pass alpha=lora_alpha * rank**0.5",
    "task_type": "the likelihood, such as Categorical(2) or Tagging(9)",
    "inference_mode": "not needed: predict() and load() do without",
    "modules_to_save": "head, which is always trained and saved",
    "bias": "not there: the backbone's biases stay frozen",
    "fan_in_fan_out": "not needed: the layer's class says it",
    "init_lora_weights": "not there: A starts Kaiming-uniform, B at 0",
    "peft_config": "not taken: bayes_adapters.files.peft.from_peft reads PEFT's folders",
}
"""PEFT's name of an option → what it is here."""


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a class's constructor, and of those that it passes its ``**options`` to.

    >>> from bayes_adapters.models import LoRA
    >>> sorted(parameters_of(LoRA))[:4]
    ['alpha', 'dropout', 'flipout', 'granularity']
    """
    found: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        found = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def unknown_option(owner: str, option: str, allowed: Iterable[str]) -> ConfigError:
    """Build the error for an option that ``owner`` does not have: its name here, near matches, and all that exist.

    >>> print(unknown_option("LoRA", "lora_alpha", ["alpha", "rank"]))
    Unknown option of LoRA 'lora_alpha'. PEFT's lora_alpha is here: alpha. Allowed: alpha, rank.
    """
    names = sorted(allowed)
    hint = f" PEFT's {option} is here: {PEFT_WORDS[option]}." if option in PEFT_WORDS else near_matches(option, names)
    return ConfigError(f"Unknown option of {owner} {option!r}.{hint} Allowed: {', '.join(names)}.")


def require_known(cls: type, unknown: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` if there is an option that no constructor of ``cls`` knows."""
    for option in unknown:
        raise unknown_option(cls.__name__, option, parameters_of(cls))
