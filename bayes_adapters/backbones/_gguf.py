"""Language models in llama.cpp's file format, GGUF, as a Hugging Face folder: quantised weights are multiplied out."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import torch

from bayes_adapters.errors import AdapterFileError, missing_package


def convert_gguf(source: Path, target: Path) -> None:
    """Write the model and the tokenizer in the file ``source`` into the folder ``target``.

    Transformers reads the file and multiplies out its quantised weights. They are stored as float16, whose rounding is
    far below that of 4 bits per weight; the model is an ordinary one afterwards.

    Args:
        source: a ``.gguf`` file.
        target: an empty folder.

    Raises:
        MissingResourceError: the package ``gguf``, by which transformers reads such files, is not installed.
        AdapterFileError: transformers cannot read the file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise missing_package(f"Reading {source.name}", "gguf", "language")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": source.name}
    try:
        read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **place)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
    except (ValueError, KeyError, OSError, RuntimeError, struct.error) as error:
        raise AdapterFileError(f"transformers cannot read {source.name}: {type(error).__name__}: {error}") from error
    config = read.config
    vars(config).pop("quantization_config", None)  # its weights are none any more
    with torch.device("meta"):
        plain = type(read)(config)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.half().save_pretrained(target)
    tokenizer.save_pretrained(target)
