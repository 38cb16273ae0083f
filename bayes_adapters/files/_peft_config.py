"""PEFT's ``adapter_config.json``: rank, scale and dropout of its layers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_adapters.adapters._pattern import matches
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._file_checks import no_number
from bayes_adapters.files._peft_config_checks import (
    no_configuration,
    no_pattern,
    not_json,
    require_lora,
    require_values,
)
from bayes_adapters.files._regular import read_regular

CONFIG = "adapter_config.json"
_LONGEST = 2**26  # bytes


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
        tokens: ``trainable_token_indices``: row numbers of the input embedding, or name of an embedding → numbers.
    """

    rank: int
    alpha: float
    ranks: dict[str, int]
    alphas: dict[str, float]
    rslora: bool
    dropout: float
    task_type: str | None = None
    tokens: Any = None

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
        raise no_pattern(CONFIG, key, error) from error


def read_config(path: Path) -> Settings:
    """Read ``adapter_config.json``.

    Raises:
        AdapterFileError: it is absent or damaged, or describes something other than plain LoRA.
    """
    try:
        found = json.loads(read_regular(path, 0, _LONGEST, "a configuration"), parse_constant=no_number)
    except OSError as error:
        raise no_configuration(path, error) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, AdapterFileError):
            raise
        raise not_json(path, error) from error
    about = require_lora(path, found)
    values = {
        "r": about.get("r"),
        "lora_alpha": about.get("lora_alpha"),
        "lora_dropout": about.get("lora_dropout", 0.0),
        "use_rslora": about.get("use_rslora", False),
        "rank_pattern": about.get("rank_pattern") or {},
        "alpha_pattern": about.get("alpha_pattern") or {},
        "task_type": about.get("task_type"),
    }
    require_values(path, values)
    rank, alpha, dropout, rslora, ranks, alphas, task_type = values.values()
    ranks = {key: int(value) for key, value in ranks.items()}
    settings = Settings(
        int(rank), alpha, ranks, alphas, bool(rslora), dropout, task_type, about.get("trainable_token_indices")
    )
    settings.of("")  # patterns that are none are refused even if no layer is looked up
    return settings
