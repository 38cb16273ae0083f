"""The tensors of a PEFT LoRA folder: which are A and B of which layer, and which are something else."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.files._file_checks import unreadable
from bayes_adapters.files._peft_checks import no_weights, not_placed, require_factors, require_some_left
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
        raise no_weights(path) from error
    except OSError as error:
        raise unreadable(path, error) from error


def split(
    folder: Path, tensors: Mapping[str, Tensor], leave_out: str | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return path → (A, B), and what is neither, by its name without PEFT's root; without what ``leave_out`` names."""
    halves: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(ROOT))
        if match is None:
            others[name.removeprefix(ROOT)] = value
        else:
            halves.setdefault(match[1], {})[match[2]] = value
    require_factors(folder / WEIGHTS, halves, others)
    pairs = {path: (pair["A"], pair["B"]) for path, pair in halves.items()}
    if leave_out is None:
        return pairs, others
    kept = {path: pair for path, pair in pairs.items() if not _below(leave_out, path)}
    require_some_left(folder, leave_out, list(pairs), list(kept))
    return kept, {name: value for name, value in others.items() if not _below(leave_out, name)}


def at_one_scale(
    factors: Mapping[str, tuple[Tensor, Tensor]], scales: Mapping[str, float]
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Return factors of the same functions at one scale s, and s, the commonest: ``s_l B A = s (s_l/s · B) A``."""
    scaling = Counter(scales.values()).most_common(1)[0][0]
    same = {path for path, scale in scales.items() if math.isclose(scale, scaling, rel_tol=1e-9)}
    shared = {
        path: (down, up if path in same else up.float() * (scales[path] / scaling))
        for path, (down, up) in factors.items()
    }
    return shared, scaling


def _below(module: str, path: str) -> bool:
    """Whether ``path`` lies below ``module``: from its start, or after names of models around the backbone.

    A number in a path is a place in a list of layers; a name after it is a part of a layer, and no half of a model.
    """
    return re.match(rf"([^\W\d]\w*\.)*{re.escape(module)}\.", path) is not None


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
    raise not_placed(folder, missing, paths, linear, backbone)
