"""LoRA folders of the PEFT library: read onto a plain backbone, and written; PEFT itself is not needed.

Such a folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` with A and B of every adapted layer under
``base_model.model.<path>.lora_A.weight`` (r, d_in) and ``….lora_B.weight`` (d_out, r), for Linear and Conv1D alike.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import adapted_layers, require_unadapted, restored_on_error
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.targets import Targets, dimensions
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._peft_folder import (
    CONFIG,
    ROOT,
    WEIGHTS,
    check_others,
    check_shapes,
    find_prefix,
    read_config,
    read_tensors,
    split,
)
from bayes_adapters.files._whole_file import replace_file
from bayes_adapters.heads import LinearHead, Pooling
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models import LoRA

HEAD = "bayes_adapters_head.safetensors"
"""A file of this library beside PEFT's, which PEFT does not read: the linear head and its pooling."""


def from_peft(
    directory: str | Path, backbone: nn.Module, likelihood: Likelihood, *, head: bool | None = None, **options: Any
) -> LoRA:
    """Build a :class:`~bayes_adapters.models.LoRA` with the adapters of a PEFT folder.

    Ranks, scale, dropout and layers come from the folder. Adapters trained inside a model with a head have a prefix in
    their paths (``bert.encoder…``): it is found by comparing them with the backbone's layers. With ``use_rslora`` the
    scale is lora_alpha / √r, so that the model's alpha is lora_alpha · √r.

    Of a head that was trained along (``modules_to_save``) nothing is taken over unless it is one linear layer of the
    right shape that computes the same here: transformers' bias-free ``score``, which reads the last real token, or the
    head written by :func:`to_peft`. Other heads read what a plain backbone does not give (a pooler's output, for
    example). A warning says what was left behind; the model's head is then a fresh one to be trained.

    Args:
        directory: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        backbone: the plain model the adapters were trained on, such as ``AutoModel.from_pretrained(...)``, without
            adapters. If reading fails it is left as it was given.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        head: None as above; True takes over any single linear layer of the right shape; False none.
        **options: ``pooling``, ``num_data`` or ``dropout`` of :class:`~bayes_adapters.AdapterModel`. Without
            ``pooling``, a head that is taken over brings its own.

    Returns:
        The model in eval mode; its hidden states are those of the PEFT model.

    Raises:
        AdapterFileError: the folder is no LoRA, damaged, for another backbone, or of a kind that these adapters cannot
            express (DoRA, scales that differ by layer, trained biases, …).
        ConfigError: the backbone has adapters; an option is read from the folder; ``head=True`` and there is none.
    """
    folder = Path(directory)
    settings = read_config(folder / CONFIG)
    own = sorted({"targets", "rank", "ranks", "alpha"} & set(options))
    if own:
        raise ConfigError(f"{', '.join(own)} of a PEFT adapter are read from its folder; leave them out.")
    require_unadapted(backbone)
    tensors, _ = read_tensors(folder / WEIGHTS)
    factors, others = split(folder, tensors)
    prefix = find_prefix(folder, list(factors), backbone)
    placed = {path.removeprefix(prefix): pair for path, pair in factors.items()}
    layout = {path.removeprefix(prefix): settings.of(path) for path in factors}
    ranks = {path: rank for path, (rank, _) in layout.items()}
    check_shapes(folder, placed, backbone, ranks)
    scaling = _common_scaling(folder, {path: scale for path, (_, scale) in layout.items()})
    check_others(folder, others, prefix, backbone)
    with restored_on_error(backbone):
        options["targets"] = Targets("|".join(re.escape(path) for path in placed))
        options |= {"rank": max(ranks.values()), "alpha": scaling * max(ranks.values()), "ranks": ranks}
        model = LoRA(backbone, likelihood, **{"dropout": settings.dropout, **options})
        with torch.no_grad():
            for path, layer in adapted_layers(backbone).items():
                for name, value in zip(("lora_A", "lora_B"), placed[path], strict=True):
                    getattr(layer, name).copy_(value)
        if head is not False:
            _take_head(model, folder, others, bool(head), "pooling" in options)
    return model.eval()


def _common_scaling(folder: Path, scales: Mapping[str, float]) -> float:
    common = next(iter(scales.values()))
    other = [path for path, scale in scales.items() if not math.isclose(scale, common, rel_tol=1e-9)]
    if other:
        raise AdapterFileError(
            f"The adapters in {str(folder)!r} differ in their scale: {common:g} for {next(iter(scales))!r} and "
            f"{scales[other[0]]:g} for {other[0]!r} (rank_pattern, alpha_pattern). Here one scale serves all layers; "
            "fold the difference into B, or train without these patterns."
        )
    return common


@torch.no_grad()
def _take_head(model: LoRA, folder: Path, others: Mapping[str, Tensor], wanted: bool, keep_pooling: bool) -> None:
    own = _own_head(folder)
    tensors, pooling = _foreign_head(others) if own is None else own
    given = others if tensors is None else tensors
    current: Any = model.head
    shape = tuple(current.weight.shape)
    per_token = model.likelihood.per_token
    fits = tensors is not None and tuple(tensors["weight"].shape) == shape
    fits = fits and (pooling is None or (pooling is Pooling.NONE) == per_token)
    if wanted and not fits:
        raise ConfigError(
            f"head=True, but {str(folder)!r} has no single linear head of shape {shape} for one target "
            f"{'a token' if per_token else 'an example'}: it has {_shapes(given)}. Take another likelihood, or "
            "head=None."
        )
    if tensors is None or not fits or (pooling is None and not wanted):
        if given:
            warnings.warn(
                f"The head in {str(folder)!r} ({_shapes(given)}) was not taken over: it is not known to be one linear "
                f"layer of shape {shape} on the last hidden states. The model has a fresh head: "
                "train it, or see from_peft(..., head=).",
                stacklevel=3,
            )
        return
    bias = tensors.get("bias")
    model.head.load_state_dict({"weight": tensors["weight"], "bias": bias if bias is not None else current.bias * 0})
    if pooling is not None and not keep_pooling:
        model.head.pooling = pooling


def to_peft(directory: str | Path, model: AdapterModel) -> None:
    """Write a model's adapters as a PEFT folder: ``PeftModel.from_pretrained(plain_backbone, directory)`` loads it.

    A linear head goes into a third file (:data:`HEAD`), which PEFT ignores and :func:`from_peft` reads.

    Args:
        directory: made when absent; an adapter there is replaced, a folder of other things is refused.
        model: a model without random parts, such as LoRA. Ranks may differ by layer; layers of rank 0 are left out.

    Raises:
        ConfigError: part of the adapters is random (export its mean as a LoRA first), every layer has rank 0, or the
            model has several encoders.
        AdapterFileError: the folder holds other things or cannot be written.

    Warns:
        UserWarning: the model's head is no single linear layer and was not written.
    """
    folder = Path(directory)
    layers = {path: layer for path, layer in adapted_layers(model.backbone).items() if layer.rank > 0}
    odd = [f"{site.name!r} is random" for site in model.sites]
    odd += [f"{path!r} has inter-modal paths" for path, layer in layers.items() if len(layer.inter)]
    if isinstance(model.backbone, nn.ModuleDict):
        raise ConfigError(
            f"A PEFT folder belongs to one backbone; this {type(model).__name__} has the encoders "
            f"{', '.join(model.backbone)}. Use bayes_adapters.save, which keeps the whole model."
        )
    if odd or not layers:
        what = odd[0] if odd else "no layer has a rank above 0"
        raise ConfigError(
            f"A PEFT folder holds one A and one B for each layer; here {what}. Write the posterior mean as a LoRA, or "
            "use bayes_adapters.save, which keeps the whole posterior."
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise AdapterFileError(
            f"The folder {str(folder)!r} is not empty and has no {CONFIG}; nothing was written. Choose a new folder."
        )
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        for name, factor in zip(("lora_A", "lora_B"), as_lora(layer), strict=True):
            tensors[f"{ROOT}{path}.{name}.weight"] = factor.detach().cpu().contiguous().clone()
    head: bytes | None = None
    if type(model.head) is LinearHead:
        state = {name: value.detach().cpu().contiguous().clone() for name, value in model.head.state_dict().items()}
        head = tensors_to_bytes(state, metadata={"pooling": model.pooling.value})
    else:
        warnings.warn(
            f"The head is a {type(model.head).__name__}, not one linear layer, and was not written; "
            "bayes_adapters.save keeps it.",
            stacklevel=2,
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / WEIGHTS, tensors_to_bytes(tensors, metadata={"format": "pt"}))
        (folder / HEAD).unlink(missing_ok=True)
        if head is not None:
            replace_file(folder / HEAD, head)
        replace_file(folder / CONFIG, (json.dumps(_config(model, layers), indent=2) + "\n").encode())
    except OSError as error:
        raise AdapterFileError(
            f"Cannot write the adapter to {str(folder)!r}: {error}. Is the disk full, or the folder read-only?"
        ) from error


def _config(model: AdapterModel, layers: Mapping[str, AdaptedLinear]) -> dict[str, Any]:
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alphas = {path: layer.scaling * layer.rank for path, layer in layers.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    linear = [path for path, module in model.backbone.named_modules() if isinstance(module, AdaptedLinear)]
    linear += [path for path, module in model.backbone.named_modules() if dimensions(module) is not None]
    meant = {path for path in linear if any(path == own or path.endswith(f".{own}") for own in layers)}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(getattr(model.backbone.config, "_name_or_path", "") or "") or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": model.dropout,
        # PEFT takes a list's entries for suffixes, and a string for a regular expression of whole paths.
        "target_modules": list(layers) if meant == set(layers) else "|".join(re.escape(path) for path in layers),
        "fan_in_fan_out": all(isinstance(layer.base_layer, Conv1D) for layer in layers.values()),
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {f"^{re.escape(path)}": layer.rank for path, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {f"^{re.escape(path)}": a for path, a in alphas.items() if a != alpha},
    }


def _own_head(folder: Path) -> tuple[dict[str, Tensor], Pooling] | None:
    if not (folder / HEAD).is_file():
        return None
    tensors, about = read_tensors(folder / HEAD)
    if about.get("pooling") not in list(Pooling) or "weight" not in tensors:
        raise AdapterFileError(f"{str(folder / HEAD)!r} was not written by to_peft. Remove it, or write it again.")
    return tensors, Pooling(about["pooling"])


def _foreign_head(others: Mapping[str, Tensor]) -> tuple[dict[str, Tensor] | None, Pooling | None]:
    """Return weight and bias if the tensors are one linear layer's, and the pooling with which it computes the same."""
    modules = {name.rpartition(".")[0] for name in others}
    found = {name.rpartition(".")[2]: value for name, value in others.items()}
    if len(modules) != 1 or "weight" not in found or not set(found) <= {"weight", "bias"} or found["weight"].dim() != 2:
        return None, None
    # With a bias, `score` is the head of transformers' token classification, which reads every token.
    return found, Pooling.LAST if modules == {"score"} and "bias" not in found else None


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()) or "none"
