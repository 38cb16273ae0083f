"""Weights in llama.cpp's format become an ordinary Hugging Face model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bayes_adapters.backbones import language_model
from bayes_adapters.backbones._gguf import convert_gguf
from bayes_adapters.errors import AdapterFileError, MissingResourceError
from tests.refusals import refuses

D, HEADS, INNER = 64, 4, 96


def _tiny(path: Path) -> dict[str, np.ndarray]:
    """Write a Llama of one layer and some letters, 4 bits per weight of its feed-forward part; return its weights."""
    import gguf

    words = ["<unk>", "<s>", "</s>", "a", "b", "ab", "Ġ"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(D)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(words), D), "output_norm": (D,), "blk.0.attn_norm": (D,), "blk.0.ffn_norm": (D,)}
    shapes |= {f"blk.0.attn_{part}": (D, D) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (INNER, D), "blk.0.ffn_up": (INNER, D), "blk.0.ffn_down": (D, INNER)}
    weights = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        if "ffn_" in name and weight.ndim > 1:
            kind = gguf.GGMLQuantizationType.Q4_1
            packed = gguf.quants.quantize(weight, kind)
            weights[name] = gguf.quants.dequantize(packed, kind)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_weights_and_words_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    weights = _tiny(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    model, tokenizer = language_model(tmp_path / "out")
    assert not model.training
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer("ab")["input_ids"][-1] == 5
    assert tokenizer.padding_side == "left"
    found = model.state_dict()
    places = {"blk.0.attn_v": "self_attn.v_proj", "blk.0.ffn_down": "mlp.down_proj", "blk.0.ffn_gate": "mlp.gate_proj"}
    for own, theirs in places.items():
        stored = torch.from_numpy(weights[own]).half().float()
        assert torch.equal(found[f"model.layers.0.{theirs}.weight"], stored), own
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    ids = torch.tensor([[1, 3, 4]])
    assert model.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape == (1, 5)


def test_what_is_no_such_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with refuses(AdapterFileError, "broken.gguf"):
        convert_gguf(tmp_path / "broken.gguf", tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)  # as where it is not installed
    with refuses(MissingResourceError, "gguf", "language"):
        convert_gguf(tmp_path / "broken.gguf", tmp_path)
