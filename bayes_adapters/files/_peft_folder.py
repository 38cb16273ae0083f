"""Reading a PEFT LoRA folder: what its two files say, and which of it these adapters cannot express."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.errors import AdapterFileError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."
"""What stands before every tensor's name."""
_FACTOR = re.compile(r"(.*)\.lora_([AB])\.weight")

_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias"}
# The tensors' names and shapes say what these say, or they concern the start of training only.
_NO_EFFECT = {
    "alora_offset",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
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
    """

    rank: Any
    alpha: Any
    ranks: dict[str, Any]
    alphas: dict[str, Any]
    rslora: bool
    dropout: float

    def of(self, path: str) -> tuple[int, float]:
        """Return r and the scale of the layer ``path``, its path in the model that was trained."""
        rank, alpha = _lookup(self.ranks, path, self.rank), _lookup(self.alphas, path, self.alpha)
        if not (_number(rank) and _number(alpha)) or rank != int(rank) or rank < 1 or alpha <= 0:
            raise AdapterFileError(
                f"The layer {path!r} has r={rank!r} and lora_alpha={alpha!r}; a whole r ≥ 1 and a positive alpha are "
                "needed. Copy or save the adapter again."
            )
        return int(rank), alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _lookup(patterns: dict[str, Any], path: str, default: Any) -> Any:
    """Return what the first pattern that matches the end of ``path`` maps to, as PEFT does."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def read_config(path: Path) -> Settings:
    """Read ``adapter_config.json``.

    Raises:
        AdapterFileError: it is absent or damaged, or describes something other than plain LoRA.
    """
    try:
        about = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterFileError(
            f"{str(path)!r} cannot be read ({error.strerror or error}). Give the folder that PEFT's save_pretrained "
            "wrote; a folder of bayes_adapters.save is read by bayes_adapters.load."
        ) from error
    except (ValueError, RecursionError) as error:
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
    dropout = about.get("lora_dropout", 0.0)
    patterns: list[Any] = [about.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not _number(dropout) or not all(isinstance(pattern, dict) for pattern in patterns):
        raise AdapterFileError(
            f"{str(path)!r} has lora_dropout={dropout!r}, rank_pattern={patterns[0]!r}, alpha_pattern={patterns[1]!r}; "
            "a number and two dictionaries are needed. Copy or save the adapter again."
        )
    ranks, alphas = patterns
    settings = Settings(about.get("r"), about.get("lora_alpha"), ranks, alphas, bool(about.get("use_rslora")), dropout)
    settings.of("")
    return settings


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file, or raise :class:`AdapterFileError`."""
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin")
        raise AdapterFileError(
            f"{str(path)!r} does not exist."
            + (
                f" {pickled.name} beside it is a pickle, which could run any code and is not read: load it with PEFT "
                "and save it again with save_pretrained(folder, safe_serialization=True)."
                if pickled.is_file()
                else " Give the folder that PEFT's save_pretrained wrote."
            )
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{str(path)!r} cannot be read: {error}. Copy or save the adapter again.") from error


def split(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return path → (A, B), and what is neither, by its name without PEFT's root."""
    halves: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(ROOT))
        if match is None:
            others[name.removeprefix(ROOT)] = value
        else:
            halves.setdefault(match[1], {})[match[2]] = value
    strange = [name for name in others if "lora_" in name]
    alone = [path for path, pair in halves.items() if len(pair) != 2]
    if strange or alone or not halves:
        what = f"holds {strange[0]!r}" if strange else f"lacks A or B of {alone[0]!r}" if alone else "holds no A and B"
        raise AdapterFileError(
            f"{str(folder / WEIGHTS)!r} {what}; each adapted linear layer has lora_A.weight and lora_B.weight, and "
            "these adapters can express nothing else. Was it trained on embeddings or convolutions, with DoRA "
            "or with biases?"
        )
    return {path: (pair["A"], pair["B"]) for path, pair in halves.items()}, others


def find_prefix(folder: Path, paths: list[str], backbone: nn.Module) -> str:
    """Return what stands before the backbone's own paths."""
    linear = {path for path, module in backbone.named_modules() if path and dimensions(module) is not None}
    names = paths[0].split(".")
    prefixes = ["".join(f"{name}." for name in names[:count]) for count in range(len(names))]
    count, best = max(
        ((sum(p.startswith(prefix) and p[len(prefix) :] in linear for p in paths), prefix) for prefix in prefixes),
        key=lambda item: (item[0], -len(item[1])),
    )
    if count == len(paths):
        return best
    missing = [p for p in paths if not (p.startswith(best) and p[len(best) :] in linear)]
    raise AdapterFileError(
        f"{len(missing)} of {len(paths)} adapted layers in {str(folder)!r} are no linear layers of this "
        f"{type(backbone).__name__}, for example {missing[0]!r}; its linear layers are called such as "
        f"{min(linear, default='(none)')!r}. Load the backbone the adapters were trained on; layers of a model's head "
        "cannot be adapted."
    )


def check_shapes(
    folder: Path, placed: Mapping[str, tuple[Tensor, Tensor]], backbone: nn.Module, ranks: Mapping[str, int]
) -> None:
    """Raise :class:`AdapterFileError` unless every A is (r, d_in) and every B (d_out, r)."""
    for path, (down, up) in placed.items():
        rank = ranks[path]
        d_in, d_out = dimensions(backbone.get_submodule(path)) or (0, 0)
        given, wanted = (tuple(down.shape), tuple(up.shape)), ((rank, d_in), (d_out, rank))
        if given != wanted:
            raise AdapterFileError(
                f"A and B of {path!r} in {str(folder)!r} have shapes {given[0]} and {given[1]}; rank {rank} and this "
                f"backbone's layer need {wanted[0]} and {wanted[1]}. Load the backbone the adapters were trained on."
            )


def check_others(folder: Path, others: Mapping[str, Tensor], prefix: str, backbone: nn.Module) -> None:
    """Raise :class:`AdapterFileError` if a tensor that is no adapter's belongs to the backbone."""
    modules = {path for path, _ in backbone.named_modules() if path}
    inside = [n for n in others if n.startswith(prefix) and n[len(prefix) :].rsplit(".", 1)[0] in modules]
    if inside:
        raise AdapterFileError(
            f"{str(folder)!r} holds trained weights of the backbone itself, for example {inside[0]!r}: with this "
            "library the backbone is frozen. Merge them into the backbone and save that first."
        )


def _inexpressible(about: dict[str, Any]) -> list[str]:
    found = []
    if about.get("bias", "none") != "none":
        found.append(f"bias={about['bias']!r} trains biases of the backbone")
    start = about.get("init_lora_weights", True)
    if start not in _STARTS:
        found.append(f"init_lora_weights={start!r} may have changed the base weights at the start")
    # Options of a newer PEFT are unknown here; what is not switched on has no effect.
    found += [f"{key}={value!r}" for key, value in about.items() if key not in _READ | _NO_EFFECT and value]
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
