"""What is refused in PEFT's ``adapter_config.json``: other things than plain LoRA, and values of another type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bayes_adapters.errors import AdapterFileError

_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias"}
# The tensors' names and shapes say what these say, or they concern the start of training only.
_NO_EFFECT = {
    "alora_offset",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "_from_model_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_bias",
    "lora_dtype",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "transformers_version",
}
_START_ONLY = "lorap_"  # rates of LoRA+, of the optimiser
_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)


def require_lora(path: Path, about: Any) -> dict[str, Any]:
    """Return the contents of a configuration of plain LoRA.

    Raises:
        AdapterFileError: it describes another kind of adapter, or something besides s · B A x.
    """
    if not isinstance(about, dict) or about.get("peft_type") != "LORA":
        kind = about.get("peft_type") if isinstance(about, dict) else None
        raise AdapterFileError(
            f"{str(path)!r} has the peft_type {kind!r}; these adapters are LoRA only. Other kinds (ADALORA, LOHA, "
            "LOKR, IA3, …) are no product B A of fixed rank beside a frozen layer."
        )
    unlike = _inexpressible(about)
    if unlike:
        raise AdapterFileError(
            f"{str(path)!r} describes more than plain LoRA: {'; '.join(unlike)}. These adapters add s · B A x to "
            "frozen linear layers and nothing else. Train with plain settings, or convert the adapter with PEFT."
        )
    return about


def require_values(path: Path, values: Mapping[str, Any]) -> None:
    """Raise :class:`AdapterFileError` unless each of ``values`` is of the type and in the range it is read as."""
    for name, value in values.items():
        fits, wanted = _WANTED[name]
        if not fits(value):
            raise AdapterFileError(
                f"{str(path)!r} has {name}={str(value)[:200]!r}, a {type(value).__name__}; {wanted} is needed. Copy or "
                "save the adapter again."
            )


def no_pattern(name: str, key: str, error: ValueError) -> AdapterFileError:
    """Build the error for a key of rank_pattern or alpha_pattern, in the file ``name``, that is no pattern."""
    return AdapterFileError(
        f"{key[:200]!r} in rank_pattern or alpha_pattern of {name} is not a regular expression that can be used: "
        f"{error}. Take the ends of layer names, such as 'self.query', or copy the adapter again."
    )


def no_configuration(path: Path, error: OSError) -> AdapterFileError:
    """Build the error for a configuration that is absent or cannot be read."""
    return AdapterFileError(
        f"{str(path)!r} cannot be read ({error.strerror or error}). Give the folder that PEFT's save_pretrained "
        "wrote; a folder of bayes_adapters.save is read by bayes_adapters.load."
    )


def not_json(path: Path, error: Exception) -> AdapterFileError:
    """Build the error for a configuration that is not JSON."""
    return AdapterFileError(f"{str(path)!r} is not JSON ({error}). Copy or save the adapter again.")


def _inexpressible(about: dict[str, Any]) -> list[str]:
    found = []
    start = about.get("init_lora_weights", True)
    if start not in _STARTS:
        found.append(f"init_lora_weights={start!r} may have changed the base weights at the start")
    # Options of a newer PEFT are unknown here; what is not switched on has no effect.
    found += [
        f"{key}={value!r}"
        for key, value in about.items()
        if key not in _READ | _NO_EFFECT and value and not key.startswith(_START_ONLY)
    ]
    return found


def _number(value: Any) -> bool:
    """Whether this is an int or a float that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False


def _rank(value: Any) -> bool:
    return _number(value) and value == int(value) and 1 <= value < 2**31


def _alpha(value: Any) -> bool:
    return _number(value) and 1e-30 < value < 1e30


def _pattern(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(fits(entry) for entry in value.values())


_WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_rank, "a whole r ≥ 1"),
    "lora_alpha": (_alpha, "a positive number"),
    "lora_dropout": (lambda value: _number(value) and 0 <= value < 1, "a probability below 1"),
    "use_rslora": (lambda value: value is None or isinstance(value, bool), "true or false"),
    "rank_pattern": (_pattern(_rank), "a dictionary from names of layers to whole ranks ≥ 1"),
    "alpha_pattern": (_pattern(_alpha), "a dictionary from names of layers to positive numbers"),
    "task_type": (lambda value: value is None or isinstance(value, str), "a name"),
}
