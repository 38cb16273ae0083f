"""The tensors of a PEFT LoRA folder: which are A and B of which layer, and which are something else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._tensor_file import TensorFile

WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."
"""What stands before every tensor's name."""
_FACTOR = re.compile(r"(.*)\.lora_([AB])\.weight")


def open_weights(path: Path) -> TensorFile:
    """Return what a file lists, or raise :class:`AdapterFileError`."""
    try:
        return TensorFile.open(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        pickled = path.with_name("adapter_model.bin")
        raise AdapterFileError(
            f"{str(path)!r} does not exist."
            + (
                f" {pickled.name} beside it is a pickle, which could run any code and is not read: load it with PEFT "
                "and save it again with save_pretrained(folder, safe_serialization=True)."
                if pickled.is_file()
                else " Give the folder that PEFT's save_pretrained wrote."
            )
        ) from error
    except OSError as error:
        raise AdapterFileError(f"{str(path)!r} cannot be read ({error.strerror or error}).") from error


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
    names = [path.split(".") for path in paths]
    prefixes = {"".join(f"{name}." for name in parts[:count]) for parts in names for count in range(len(parts))}
    count, best = max(
        ((sum(p.startswith(prefix) and p[len(prefix) :] in linear for p in paths), prefix) for prefix in prefixes),
        key=lambda item: (item[0], -len(item[1]), item[1]),
    )
    if count == len(paths):
        return best
    missing = [p for p in paths if not (p.startswith(best) and p[len(best) :] in linear)]
    if count and all("." not in p for p in missing):
        raise AdapterFileError(
            f"The adapters in {str(folder)!r} fit this {type(backbone).__name__}, but {', '.join(missing)} is adapted "
            "too, a layer of the head that stands on the backbone. Here the head is a layer of its own and no adapter "
            f"serves it. Merge that one with PEFT, or train again without {missing[0]!r} among the target_modules."
        )
    raise AdapterFileError(
        f"{len(missing)} of {len(paths)} adapted layers in {str(folder)!r} are no linear layers of this "
        f"{type(backbone).__name__}, for example {missing[0]!r}; its linear layers are called such as "
        f"{min(linear, default='(none)')!r}. Load the backbone the adapters were trained on; layers of a model's head "
        "cannot be adapted, and of an encoder–decoder both halves are needed."
    )


def check_shapes(
    folder: Path, placed: Mapping[str, tuple[Tensor, Tensor]], backbone: nn.Module, ranks: Mapping[str, int]
) -> None:
    """Raise :class:`AdapterFileError` unless every A is (r, d_in) and every B (d_out, r)."""
    for path, (down, up) in placed.items():
        rank = ranks[path]
        if not (down.is_floating_point() and up.is_floating_point()):
            raise AdapterFileError(
                f"A and B of {path!r} in {str(folder)!r} are {down.dtype} and {up.dtype}; floating-point numbers are "
                "needed. They were altered, or quantised: save them in float32."
            )
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
