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

from bayes_adapters.errors import AdapterFileError
from bayes_adapters.targets import dimensions

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
    """What is read from the configuration.

    Args:
        rank: r, the same for every layer.
        scaling: what B A x is multiplied by: lora_alpha / r, or lora_alpha / √r with rslora.
        dropout: probability of zeroing an entry of the adapters' input while training.
    """

    rank: int
    scaling: float
    dropout: float


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
    rank, alpha, dropout = about.get("r"), about.get("lora_alpha"), about.get("lora_dropout", 0.0)
    if not (_number(rank) and _number(alpha) and _number(dropout)) or rank != int(rank) or rank < 1 or alpha <= 0:
        raise AdapterFileError(
            f"{str(path)!r} has r={rank!r}, lora_alpha={alpha!r}, lora_dropout={dropout!r}; a whole r ≥ 1, a positive "
            "alpha and a number are needed. Copy or save the adapter again."
        )
    unlike = _inexpressible(about, rank, alpha)
    if unlike:
        raise AdapterFileError(
            f"{str(path)!r} describes more than plain LoRA: {'; '.join(unlike)}. These adapters add s · B A x of one "
            "rank and scale to frozen linear layers. Train with plain settings, or convert the adapter with PEFT."
        )
    scaling = alpha / math.sqrt(rank) if about.get("use_rslora") else alpha / rank
    return Settings(int(rank), scaling, float(dropout))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def check_shapes(folder: Path, placed: Mapping[str, tuple[Tensor, Tensor]], backbone: nn.Module, rank: int) -> None:
    for path, (down, up) in placed.items():
        d_in, d_out = dimensions(backbone.get_submodule(path)) or (0, 0)
        given, wanted = (tuple(down.shape), tuple(up.shape)), ((rank, d_in), (d_out, rank))
        if given != wanted:
            raise AdapterFileError(
                f"A and B of {path!r} in {str(folder)!r} have shapes {given[0]} and {given[1]}; rank {rank} and this "
                f"backbone's layer need {wanted[0]} and {wanted[1]}. Load the backbone the adapters were trained on."
            )


def check_others(folder: Path, others: Mapping[str, Tensor], prefix: str, backbone: nn.Module) -> None:
    modules = {path for path, _ in backbone.named_modules() if path}
    inside = [n for n in others if n.startswith(prefix) and n[len(prefix) :].rsplit(".", 1)[0] in modules]
    if inside:
        raise AdapterFileError(
            f"{str(folder)!r} holds trained weights of the backbone itself, for example {inside[0]!r}: with this "
            "library the backbone is frozen. Merge them into the backbone and save that first."
        )


def _inexpressible(about: dict[str, Any], rank: float, alpha: float) -> list[str]:
    found = []
    for key, common in (("rank_pattern", rank), ("alpha_pattern", alpha)):
        if any(value != common for value in (about.get(key) or {}).values()):
            found.append(f"{key} differs by layer")
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
