"""Hidden states of texts below a cut (:mod:`examples.studies.decoder`), computed once and kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayes_adapters.backbones._resources import install_once
from examples.studies.decoder import Below

_FILE = "states.safetensors"


def encode(texts: Sequence[Sequence[int]], below: Below, batch_size: int = 32) -> list[Tensor]:
    """Return the hidden states of texts, each (T, d), float32.

    Args:
        texts: token numbers.
        below: the lower layers.
        batch_size: texts at once.
    """
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(texts[row]) for row in rows], batch_first=True)
        lengths = torch.tensor([len(texts[row]) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        states = below({"input_ids": ids, "attention_mask": mask})
        found |= {row: state[:length].clone() for row, state, length in zip(rows, states, lengths, strict=True)}
    return [found[row] for row in range(len(texts))]


def kept(texts: Sequence[Sequence[int]], below: Below, root: Path | None) -> list[Tensor]:
    """Return :func:`encode`'s states, kept in a folder of ``root`` whose name is a digest of texts and layers.

    None keeps nothing.
    """
    if root is None:
        return encode(texts, below)
    lengths = [len(text) for text in texts]
    ids = torch.tensor([number for text in texts for number in text])
    digest = hashlib.sha256(repr((lengths, len(below.part.layers))).encode() + ids.numpy().tobytes())
    digest.update(below.part.layers[-1].input_layernorm.weight.detach().float().numpy().tobytes())
    folder = root / f"states-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        with install_once(root, folder.name) as work:
            save_file({"states": torch.cat(encode(texts, below))}, work / _FILE)
    return list(load_file(folder / _FILE)["states"].split(lengths))
