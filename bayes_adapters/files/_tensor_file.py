"""A safetensors file of somebody else's: its list of tensors first, checked against its size, then the tensors."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._regular import read_regular, regular_start

_HEADER = 100_000_000  # most bytes that the format allows for the list
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file says it holds; :meth:`read` reads it.

    Args:
        path: the file.
        tensors: name → a tensor without values (on the meta device) of the listed dtype and shape.
        metadata: text entries besides the tensors.
        size: of the file, bytes; it is what the list adds up to.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    size: int

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read the list of a file and compare it with the file's size.

        Raises:
            OSError: the file is absent or cannot be opened.
            AdapterFileError: it is no regular file or no safetensors file, or was cut off.
        """
        start, size = regular_start(path, 8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(_HEADER, size - 8):
            raise _no_tensors(path, f"its {size:,} bytes do not begin with the length of a list of tensors")
        head, _ = regular_start(path, 8 + length)
        try:
            entries = json.loads(head[8:])
            metadata = dict(entries.pop("__metadata__", None) or {})
            tensors = {name: _listed(entry) for name, entry in entries.items()}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise _no_tensors(path, f"its list of tensors cannot be read ({type(error).__name__}: {error})") from error
        if 8 + length + end != size or sum(t.numel() * t.element_size() for t in tensors.values()) != end:
            raise _no_tensors(path, f"it has {size:,} bytes and its list of tensors asks for {8 + length + end:,}")
        return cls(path, tensors, metadata, size)

    def read(self) -> tuple[dict[str, Tensor], str]:
        """Return the tensors, and the SHA-256 of the file's bytes.

        Raises:
            OSError: the file cannot be read.
            AdapterFileError: it was changed since it was opened, or is damaged.
        """
        data = read_regular(self.path, self.size, self.size, "the tensors that it lists")
        try:
            return tensors_from_bytes(data), hashlib.sha256(data).hexdigest()
        except (SafetensorError, KeyError) as error:
            raise _no_tensors(self.path, str(error)) from error


def _listed(entry: Any) -> Tensor:
    shape = [int(size) for size in entry["shape"]]
    begin, end = entry["data_offsets"]
    found = torch.empty(shape, dtype=_TYPES[entry["dtype"]], device="meta")
    if end - begin != math.prod(shape) * found.element_size():
        raise ValueError(f"{end - begin} bytes for the shape {shape}")
    return found


def _no_tensors(path: Path, why: str) -> AdapterFileError:
    return AdapterFileError(
        f"{str(path)!r} cannot be read as a safetensors file: {why}. Copy or save the adapter again."
    )
