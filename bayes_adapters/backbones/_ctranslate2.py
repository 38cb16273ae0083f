"""Whisper weights stored by CTranslate2, as a Hugging Face model.

The file is little-endian: version, specification name, revision, then each variable as
(name, rank, shape, dtype, byte count, bytes), then aliases. A string is a length and that many bytes, the last zero.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bayes_adapters.errors import AdapterFileError

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Read every variable of a CTranslate2 ``model.bin``.

    Returns:
        name → array in the stored shape and dtype (float32, float16 or integer).

    Raises:
        AdapterFileError: the file ends early or holds an unknown dtype.
    """
    reader = _Reader(path)
    reader.number("I")  # version of the container
    reader.text()
    reader.number("I")  # revision of the specification
    variables: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        code = reader.number("B")
        if code not in _DTYPES:
            raise AdapterFileError(
                f"{path.name}: variable {name!r} has dtype code {code}; known are {sorted(_DTYPES)}."
            )
        variables[name] = np.frombuffer(reader.take(reader.number("I")), _DTYPES[code]).reshape(shape)
    for _ in range(reader.number("I")):
        alias, name = reader.text(), reader.text()
        variables[alias] = variables[name]
    return variables


def whisper_from_variables(variables: dict[str, np.ndarray], heads: int) -> WhisperForConditionalGeneration:
    """Build a Whisper model and load these variables strictly: every weight is set, none is left over.

    Args:
        variables: what :func:`read_variables` returned.
        heads: attention heads per layer; the file does not say.

    Returns:
        The model in float32, in eval mode.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    source = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in variables.items()}
    state: dict[str, Tensor] = {}
    layers = {side: _count_layers(source, side) for side in ("encoder", "decoder")}
    for side, count in layers.items():
        state[f"model.{side}.embed_positions.weight"] = source[f"{side}/position_encodings/encodings"]
        _norm(state, f"model.{side}.layer_norm", source, f"{side}/layer_norm")
        for i in range(count):
            _layer(state, f"model.{side}.layers.{i}", source, f"{side}/layer_{i}", cross=side == "decoder")
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            state[f"model.encoder.{conv}.{part}"] = source[f"encoder/{conv}/{part}"]
    state["model.decoder.embed_tokens.weight"] = source["decoder/embeddings/weight"]
    state["proj_out.weight"] = source["decoder/embeddings/weight"]
    vocabulary, width = state["proj_out.weight"].shape
    english = vocabulary == 51_864
    end = 50_256 if english else 50_257
    config = WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=state["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=state["model.decoder.embed_positions.weight"].shape[0],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
        begin_suppress_tokens=[220, end],
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state, strict=True)
    model.tie_weights()
    return model.eval()


def convert_whisper(source: Path, target: Path, heads: int) -> None:
    """Write the model in ``source`` (``model.bin``, ``tokenizer.json``) to ``target`` as a Hugging Face folder."""
    from transformers import WhisperFeatureExtractor

    model = whisper_from_variables(read_variables(source / "model.bin"), heads)
    model.save_pretrained(target)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(target)
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")


def _count_layers(source: dict[str, Tensor], side: str) -> int:
    numbers = {name.split("/")[1].removeprefix("layer_") for name in source if name.startswith(f"{side}/layer_")}
    return sum(number.isdigit() for number in numbers)


def _norm(state: dict[str, Tensor], name: str, source: dict[str, Tensor], origin: str) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = source[f"{origin}/gamma"], source[f"{origin}/beta"]


def _linear(state: dict[str, Tensor], names: list[str], source: dict[str, Tensor], origin: str) -> None:
    """Split one stored projection, a stack of equal ones, into ``names``; Whisper's keys have no bias."""
    weights = source[f"{origin}/weight"].chunk(len(names))
    biases = source[f"{origin}/bias"].chunk(len(names))
    for name, weight, bias in zip(names, weights, biases, strict=True):
        state[f"{name}.weight"] = weight.clone()
        if not name.endswith(".k_proj"):
            state[f"{name}.bias"] = bias.clone()
        elif bool(bias.any()):
            raise AdapterFileError(f"{origin}: the key projection has a bias; Whisper has none. Is this another model?")


def _layer(state: dict[str, Tensor], name: str, source: dict[str, Tensor], origin: str, cross: bool) -> None:
    _norm(state, f"{name}.self_attn_layer_norm", source, f"{origin}/self_attention/layer_norm")
    _linear(state, [f"{name}.self_attn.{x}_proj" for x in "qkv"], source, f"{origin}/self_attention/linear_0")
    _linear(state, [f"{name}.self_attn.out_proj"], source, f"{origin}/self_attention/linear_1")
    if cross:
        _norm(state, f"{name}.encoder_attn_layer_norm", source, f"{origin}/attention/layer_norm")
        _linear(state, [f"{name}.encoder_attn.q_proj"], source, f"{origin}/attention/linear_0")
        _linear(state, [f"{name}.encoder_attn.{x}_proj" for x in "kv"], source, f"{origin}/attention/linear_1")
        _linear(state, [f"{name}.encoder_attn.out_proj"], source, f"{origin}/attention/linear_2")
    _norm(state, f"{name}.final_layer_norm", source, f"{origin}/ffn/layer_norm")
    _linear(state, [f"{name}.fc1"], source, f"{origin}/ffn/linear_0")
    _linear(state, [f"{name}.fc2"], source, f"{origin}/ffn/linear_1")


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path, self._bytes, self._at = path, memoryview(path.read_bytes()), 0

    def take(self, count: int) -> memoryview:
        piece = self._bytes[self._at : self._at + count]
        if len(piece) < count:
            raise AdapterFileError(
                f"{self._path.name} ends early: {count} bytes were expected at {self._at} of {len(self._bytes)}. "
                "It is cut off or no CTranslate2 model; fetch it again."
            )
        self._at += count
        return piece

    def number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def text(self) -> str:
        try:
            return bytes(self.take(self.number("H"))[:-1]).decode()
        except UnicodeDecodeError as error:
            raise AdapterFileError(
                f"{self._path.name} is no CTranslate2 model: a name at {self._at} is no text."
            ) from error
