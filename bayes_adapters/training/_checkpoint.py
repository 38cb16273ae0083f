"""Checkpoints of a run: one safetensors file, its description as JSON in the header, replaced in one step."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from bayes_adapters.files._whole_file import remove_leftovers, replace_file
from bayes_adapters.training import _checkpoint_checks
from bayes_adapters.training._state import decode, encode

FORMAT = 1
"""Version of the file's layout."""
FILE = "checkpoint.safetensors"
"""Name of the file in the checkpoint directory."""


def save(directory: Path, config: dict[str, Any], content: dict[str, Any]) -> None:
    """Write a checkpoint: a reader finds the old file or the new one, never half of either.

    Weights and description share one file because two files cannot be replaced at the same instant.

    Args:
        directory: created if need be.
        config: what must match for the run to be continued, as JSON.
        content: nested numbers, strings and tensors.

    Raises:
        AdapterFileError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = encode(content, tensors)
    text = json.dumps({"format": FORMAT, "config": config, "content": tree}, allow_nan=False)
    data = to_bytes(tensors, {"state": text, "sha256": _digest(text, tensors)})
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / FILE, data)
    except OSError as error:
        raise _checkpoint_checks.unwritable(directory, len(data), error) from error


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
        tensors = from_bytes(data)
        text = header["state"]
        found = json.loads(text)
        stated, digest = header["sha256"], _digest(text, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _checkpoint_checks.unreadable(path, error) from error
    _checkpoint_checks.require_intact(path, stated, digest)
    _checkpoint_checks.require_format(path, found["format"], FORMAT)
    _checkpoint_checks.require_same_run(path, differences(found["config"], json.loads(json.dumps(config))))
    content: dict[str, Any] = decode(found["content"], tensors)
    return content


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """List where two JSON values differ, one line a leaf.

    >>> differences({"seed": 0, "model": {"rank": 8}}, {"seed": 0, "model": {"rank": 4}})
    ['model.rank: the checkpoint has 8, this run 4']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in dict.fromkeys([*old, *new]):
            lines += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return lines
    return [] if old == new else [f"{path}: the checkpoint has {_short(old)}, this run {_short(new)}"]


def fingerprint(module: nn.Module) -> str:
    """Return a hash of the frozen tensors: names, shapes and up to 64 entries of each; the same on all devices."""
    hasher = hashlib.sha256()
    for name, p in module.named_parameters():
        if not p.requires_grad:
            flat = p.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].cpu().contiguous()
            hasher.update(f"{name}:{tuple(p.shape)}:{p.dtype}".encode() + _raw(sample))
    return hasher.hexdigest()[:16]


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    hasher = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        hasher.update(name.encode() + _raw(tensors[name]))
    return hasher.hexdigest()


def _raw(value: Tensor) -> bytes:
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
