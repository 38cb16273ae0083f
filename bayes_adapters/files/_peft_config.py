"""PEFT's ``adapter_config.json``: what is read of it, and which of it these adapters cannot express."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_adapters.adapters._pattern import matches
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._regular import read_regular

CONFIG = "adapter_config.json"
_LONGEST = 2**26  # bytes

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
    "transformers_version",
}
_START_ONLY = "lorap_"  # rates of LoRA+, of the optimiser
_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)


@dataclass(frozen=True)
class Settings:
    """What is read from the configuration; :meth:`of` checks the numbers.

    Args:
        rank: r, of every layer that ``ranks`` does not name.
        alpha: lora_alpha, of every layer that ``alphas`` does not name.
        ranks: pattern of paths → r.
        alphas: pattern of paths → lora_alpha.
        rslora: whether B A x is multiplied by lora_alpha / √r rather than lora_alpha / r.
        dropout: probability of zeroing an entry of the adapters' input while training.
        task_type: PEFT's name of the task, or None.
    """

    rank: int
    alpha: float
    ranks: dict[str, int]
    alphas: dict[str, float]
    rslora: bool
    dropout: float
    task_type: str | None = None

    def of(self, path: str) -> tuple[int, float]:
        """Return r and the scale of the layer ``path``, its path in the model that was trained."""
        rank, alpha = _lookup(self.ranks, path, self.rank), _lookup(self.alphas, path, self.alpha)
        return rank, alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def checksum(self) -> str:
        """Return a hash of everything that the adapters' output depends on."""
        alphas = {key: float(alpha) for key, alpha in self.alphas.items()}
        numbers = [self.rank, float(self.alpha), self.ranks, alphas, self.rslora]
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()


def _lookup(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return what the first pattern that matches the end of ``path`` maps to, as PEFT does."""
    return next((value for key, value in patterns.items() if _ends_in(path, key)), default)


def _ends_in(path: str, key: str) -> bool:
    try:
        return matches(rf"(.*\.)?({key})$", path, whole=False)
    except ValueError as error:
        raise AdapterFileError(
            f"{key[:200]!r} in rank_pattern or alpha_pattern of {CONFIG} is not a regular expression that can be used: "
            f"{error}. Take the ends of layer names, such as 'self.query', or copy the adapter again."
        ) from error


def read_config(path: Path) -> Settings:
    """Read ``adapter_config.json``.

    Raises:
        AdapterFileError: it is absent or damaged, or describes something other than plain LoRA.
    """
    try:
        about = json.loads(read_regular(path, 0, _LONGEST, "a configuration"), parse_constant=_no_number)
    except OSError as error:
        raise AdapterFileError(
            f"{str(path)!r} cannot be read ({error.strerror or error}). Give the folder that PEFT's save_pretrained "
            "wrote; a folder of bayes_adapters.save is read by bayes_adapters.load."
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, AdapterFileError):
            raise
        raise AdapterFileError(f"{str(path)!r} is not JSON ({error}). Copy or save the adapter again.") from error
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
    values = {
        "r": about.get("r"),
        "lora_alpha": about.get("lora_alpha"),
        "lora_dropout": about.get("lora_dropout", 0.0),
        "use_rslora": about.get("use_rslora", False),
        "rank_pattern": about.get("rank_pattern") or {},
        "alpha_pattern": about.get("alpha_pattern") or {},
        "task_type": about.get("task_type"),
    }
    for name, value in values.items():
        fits, wanted = _WANTED[name]
        if not fits(value):
            raise AdapterFileError(
                f"{str(path)!r} has {name}={str(value)[:200]!r}, a {type(value).__name__}; {wanted} is needed. Copy or "
                "save the adapter again."
            )
    rank, alpha, dropout, rslora, ranks, alphas, task_type = values.values()
    ranks = {key: int(value) for key, value in ranks.items()}
    settings = Settings(int(rank), alpha, ranks, alphas, bool(rslora), dropout, task_type)
    settings.of("")  # patterns that are none are refused even if no layer is looked up
    return settings


def _inexpressible(about: dict[str, Any]) -> list[str]:
    found = []
    if about.get("bias", "none") != "none":
        found.append(f"bias={about['bias']!r} trains biases of the backbone")
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


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")
