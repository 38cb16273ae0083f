"""Checkpoints of a run: one safetensors file, its description as JSON in the header, replaced in one step."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._whole_file import remove_leftovers, replace_file

FORMAT = 1
"""Version of the file's layout."""
FILE = "checkpoint.safetensors"
"""Name of the file in the checkpoint directory."""
_LATER = ("backbone_sha256",)
"""Parts of the description that older files lack."""


def save(directory: Path, config: dict[str, Any], content: dict[str, Any]) -> None:
    """Write a checkpoint: a reader finds the old file or the new one, never half of either.

    Weights and description share one file because two files cannot be replaced at the same instant.

    Args:
        directory: created if need be.
        config: what must match for the run to be continued, as JSON.
        content: nested numbers, strings and tensors.

    Raises:
        AdapterFileError: it cannot be written.
        ConfigError: the content holds something else.
    """
    tensors: dict[str, Tensor] = {}
    tree = encode(content, tensors)
    text = json.dumps({"format": FORMAT, "config": config, "content": tree}, allow_nan=False)
    data = to_bytes(tensors, {"state": text, "sha256": _digest(text, tensors)})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / FILE, data)
    except OSError as error:
        raise AdapterFileError(
            f"The checkpoint cannot be written into {directory} ({error}). Is that a folder you may write to, with "
            f"{len(data) / 2**20:.0f} MiB free? Pass another checkpoint=."
        ) from error


def load(directory: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Read a checkpoint's content, or return None when the directory has none.

    What runs that were killed while they wrote have left in the directory is removed.

    Raises:
        AdapterFileError: the file is damaged or of another format.
        ConfigError: it was written by a run with another model, guide or settings; the message lists the differences.
    """
    path = directory / FILE
    if directory.is_dir():
        with suppress(OSError):  # a folder that may only be read
            remove_leftovers(directory, [FILE])
    if not path.exists():
        return None
    try:
        data = path.read_bytes()  # Ctrl-C while safetensors reads a file itself would look like a damaged one
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors, found = from_bytes(data), json.loads(header["state"])
        if header["sha256"] != _digest(header["state"], tensors):
            raise ValueError("its checksum does not match its content")
        if found["format"] != FORMAT:
            raise ValueError(f"it has format {found['format']}, and this version reads {FORMAT}")
        old, content = found["config"], decode(found["content"], tensors)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise AdapterFileError(
            f"{path} is not a readable checkpoint ({error}). Was it cut short, or written by another version? Delete "
            "it, or pass resume=False, to start anew."
        ) from error
    new = json.loads(json.dumps(config))
    if lines := differences({name: new.get(name) for name in _LATER} | old, new):
        listed = "\n".join(lines)
        raise ConfigError(
            f"{path} was written by another run, so this one cannot continue it:\n{listed}\n"
            "Give this run its own directory, restore the old settings, or pass resume=False to start anew."
        )
    return content


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """List where two descriptions differ, one line a leaf.

    >>> differences({"seed": 0, "model": {"rank": 8}}, {"seed": 0, "model": {"rank": 4}})
    ['  model.rank: the checkpoint has 8, this run 4']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    short = [text if len(text) <= 80 else text[:77] + "…" for text in (repr(old), repr(new))]
    return [] if old == new else [f"  {path}: the checkpoint has {short[0]}, this run {short[1]}"]


def encode(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Turn a nested state into JSON; tensors go to ``tensors``, copied to the CPU, under their path.

    Raises:
        ConfigError: a value is neither a number, string, tensor, list, tuple nor dictionary of such.

    >>> tensors = {}
    >>> tree = {"step": torch.tensor(3.), 0: (1, float("inf")), "name": None}
    >>> decode(encode(tree, tensors), tensors) == tree
    True
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, list | tuple):
        parts = [encode(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, dict):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[encode(k, tensors), encode(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    raise ConfigError(
        f"The state {path!r} is a {type(value).__name__}, which a checkpoint without pickle cannot hold. Use an "
        "optimizer and scheduler whose state is numbers and tensors, or pass checkpoint=None."
    )


def decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert :func:`encode`; a tree that it does not make raises what reading it raises."""
    if isinstance(tree, list):
        return [decode(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "float":
        return float(value)
    if kind == "tuple":
        return tuple(decode(value, tensors))
    return {"dict": dict, "counter": Counter}[kind]({decode(k, tensors): decode(v, tensors) for k, v in value})


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    hasher = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        hasher.update(name.encode() + raw(tensors[name]))
    return hasher.hexdigest()


def raw(value: Tensor) -> bytes:
    """Return the bytes of a tensor on the CPU."""
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()
