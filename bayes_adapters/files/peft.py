"""LoRA folders of the PEFT library: read onto a plain backbone, and written; PEFT itself is not needed.

Such a folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` with A and B of every adapted layer under
``base_model.model.<path>.lora_A.weight`` (r, d_in) and ``….lora_B.weight`` (d_out, r), for Linear and Conv1D alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import adapted_layers, require_unadapted, restored_on_error
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.linear_layers import is_conv1d
from bayes_adapters.adapters.targets import Targets, dimensions
from bayes_adapters.files._checks import require_finite
from bayes_adapters.files._file_checks import unreadable
from bayes_adapters.files._lock import steady
from bayes_adapters.files._peft_checks import (
    check_others,
    check_shapes,
    require_one_scaling,
    require_own_configuration,
    require_own_options,
    require_plain,
    require_predicts,
    require_prefix,
)
from bayes_adapters.files._peft_config import CONFIG, Settings, read_config
from bayes_adapters.files._peft_head import Head, foreign_head, own_head, take_head, task_head, warn_of_head, whole_head
from bayes_adapters.files._peft_tensors import (
    ROOT,
    WEIGHTS,
    find_prefix,
    open_weights,
    split,
)
from bayes_adapters.files._peft_write import HEAD as HEAD
from bayes_adapters.files._peft_write import STATE, replace_folder, require_free, source
from bayes_adapters.files._regular import as_folder, readable
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.files.marks import Marks
from bayes_adapters.heads import LinearHead, TransformersHead
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models import LoRA

_SETTINGS = "bayes_adapters_settings"  # in the weights' metadata: a checksum of the settings they belong to


def from_peft(
    directory: str | Path,
    backbone: nn.Module,
    likelihood: Likelihood,
    *,
    head: bool | None = None,
    leave_out: str | None = None,
    **options: Any,
) -> LoRA:
    """Build a :class:`~bayes_adapters.models.LoRA` with the adapters of a PEFT folder.

    Ranks, scale, dropout and layers come from the folder. Adapters trained inside a model with a head have a prefix in
    their paths (``bert.encoder…``): it is found by comparing them with the backbone's layers. With ``use_rslora`` the
    scale is lora_alpha / √r, so that the model's alpha is lora_alpha · √r.

    A head that was trained along (``modules_to_save``) is taken over if it is one linear layer of the right shape that
    computes the same on a plain backbone: the one written by :func:`to_peft`; transformers' bias-free ``score``, which
    reads the last real token; the ``classifier`` of BERT, ALBERT, ERNIE and Swin, which reads the backbone's pooler, of
    ViT, which reads the first token, and of token classification, which reads all. A head with layers of its own
    (RoBERTa, DistilBERT, DeBERTa, BART) becomes a :class:`~bayes_adapters.heads.TransformersHead` if the folder holds
    all of it. Otherwise, and where there is none (a language model), a warning says so; the model's head is then a
    fresh one to be trained, and :func:`~bayes_adapters.surgery.training_free.bayesianise` refuses it until it was.

    Args:
        directory: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        backbone: the plain model the adapters were trained on, such as ``AutoModel.from_pretrained(...)``, without
            adapters. If reading fails it is left as it was given. Wrappers (``torch.compile``, DDP) are looked through.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        head: None as above; True takes over any single linear layer of the right shape too; False none.
        leave_out: the half of an encoder–decoder that ``backbone`` is not, such as ``"decoder"`` where it is
            ``T5EncoderModel`` or ``BartModel.get_encoder()``: layers below that name are dropped.
        **options: ``pooling``, ``num_data`` or ``dropout`` of :class:`~bayes_adapters.AdapterModel`. Without
            ``pooling``, a head that is taken over brings its own.

    Returns:
        The model in eval mode; its hidden states are those of the PEFT model.

    Raises:
        AdapterFileError: the folder is no LoRA, damaged, for another backbone, or of a kind that these adapters cannot
            express (DoRA, scales that differ by layer, trained biases, …); A or B holds NaN or an infinity.
        ConfigError: the backbone has adapters; an option is read from the folder; ``head=True`` and there is none;
            ``leave_out`` drops no adapted layer, or all.

    Warns:
        UserWarning: the model has a fresh head.
    """
    folder = as_folder(directory)
    require_own_options(options)
    with unwrapped(backbone) as plain:
        require_unadapted(plain)
        found = steady(folder, STATE, lambda: _read(folder, plain, leave_out), whole=True)
        with restored_on_error(plain):
            ranks = found.ranks
            options["targets"] = Targets("|".join(re.escape(path) for path in found.factors))
            options |= {"rank": max(ranks.values()), "alpha": found.scaling * max(ranks.values()), "ranks": ranks}
            own = "pooling" in options
            whole = None if own or head is False or found.known_head else found.task_head(plain, likelihood)
            options |= {} if whole is None else {"head": whole}
            model = LoRA(plain, likelihood, **{"dropout": found.settings.dropout, **options})
            with torch.no_grad():
                for path, layer in adapted_layers(plain).items():
                    for name, value in zip(("lora_A", "lora_B"), found.factors[path], strict=True):
                        getattr(layer, name).copy_(value)
            if whole is not None:
                whole.net.load_state_dict(found.others)
            trained = whole is not None or (
                head is not False and take_head(model, folder, found.head, found.others, wanted=bool(head), own=own)
            )
            Marks(None if trained else (), found.prefix, found.settings.task_type).put_on(model)
        if plain is not backbone:
            model.backbone = backbone
    return model.eval()


@dataclass(frozen=True)
class _Found:
    """What a folder holds, checked against a backbone."""

    settings: Settings
    prefix: str
    factors: dict[str, tuple[Tensor, Tensor]]
    ranks: dict[str, int]
    scaling: float
    others: dict[str, Tensor]
    head: Head | None

    @property
    def known_head(self) -> bool:
        """Whether the head is one linear layer and what it reads is known."""
        return self.head is not None and self.head.pooling is not None

    def task_head(self, backbone: nn.Module, likelihood: Likelihood) -> TransformersHead | None:
        """Return transformers' own head for the task, still without its weights, if the folder has all of them."""
        return task_head(self.others, self.prefix, backbone, likelihood, self.settings.task_type)


def _read(folder: Path, backbone: nn.Module, leave_out: str | None) -> _Found:
    """Read the folder once; names and shapes are compared with the backbone's before any tensor is read."""
    where = source(folder)
    settings = read_config(where / CONFIG)
    file = open_weights(where / WEIGHTS)
    listed, others = split(folder, file.tensors, leave_out)
    prefix = find_prefix(folder, list(listed), backbone)
    layout = {path.removeprefix(prefix): settings.of(path) for path in listed}
    ranks = {path: rank for path, (rank, _) in layout.items()}
    check_shapes(folder, {path.removeprefix(prefix): pair for path, pair in listed.items()}, backbone, ranks)
    check_others(folder, others, prefix, backbone)
    scaling = require_one_scaling(folder, {path: scale for path, (_, scale) in layout.items()})
    require_own_configuration(where / CONFIG, file.metadata.get(_SETTINGS, settings.checksum()), settings.checksum())
    try:
        tensors, digest = file.read()
    except OSError as error:
        raise unreadable(file.path, error) from error
    factors, others = split(folder, tensors, leave_out)
    require_predicts(file.path, tensors)
    placed = {path.removeprefix(prefix): pair for path, pair in factors.items()}
    found = own_head(where, digest) or foreign_head(others, backbone, settings.task_type)
    return _Found(settings, prefix, placed, ranks, scaling, others, found)


def to_peft(directory: str | Path, model: AdapterModel, *, prefix: str | None = None) -> None:
    """Write a model's adapters as a PEFT folder: ``PeftModel.from_pretrained(plain_backbone, directory)`` loads it.

    A linear head goes into a third file (:data:`HEAD`), which PEFT ignores and :func:`from_peft` reads; a
    :class:`~bayes_adapters.heads.TransformersHead` goes where PEFT reads it, into ``modules_to_save``. After a crash
    the folder holds the old adapter or the new one for :func:`from_peft`; PEFT itself may find no configuration where
    the new one differs, and then the next call completes it.

    Args:
        directory: made when absent; an adapter there is replaced, a folder of other things is refused.
        model: a model without random parts, such as LoRA. Ranks may differ by layer; layers of rank 0 are left out.
        prefix: what stands before the backbone's paths in the model that PEFT is to load the adapters into: ``""`` for
            the plain backbone (``AutoModel``), ``"model."`` inside ``LlamaForCausalLM``, ``"bert."`` inside
            ``BertForSequenceClassification``, in general ``f"{backbone.base_model_prefix}."``. None means the one that
            :func:`from_peft` found, and for a model from elsewhere that of its TransformersHead, or ``""``. PEFT loads
            nothing, with a warning only, into a model with other paths.

    Raises:
        ConfigError: part of the adapters is random (export its mean as a LoRA first), every layer has rank 0, the
            model has several encoders, or the prefix is none.
        NonFiniteError: a parameter of adapters or head holds NaN or an infinity.
        AdapterFileError: the folder holds other things or cannot be written.

    Warns:
        UserWarning: the model's head was not written: it is of another kind, or for a model with another prefix.
    """
    folder = as_folder(directory)
    require_prefix(prefix)
    with unwrapped(model):
        marks, whole = Marks.of(model), model.head if isinstance(model.head, TransformersHead) else None
        prefix = (marks.prefix or (whole.prefix if whole else "")) if prefix is None else prefix
        whole = whole if whole is not None and whole.prefix == prefix else None
        layers = _written_layers(model)
        with readable(folder):
            require_free(folder)
        own = {
            f"{ROOT}{prefix}{path}.{name}.weight": factor
            for path, layer in layers.items()
            for name, factor in zip(_FACTORS, as_lora(layer), strict=True)
        }
        require_finite(own | {f"head.{name}": p for name, p in model.head.named_parameters()})
        if whole is not None:
            own |= {f"{ROOT}{name}": value for name, value in whole.net.state_dict().items()}
        config = _config(model, layers, prefix, marks.task_type) | ({} if whole is None else whole_head(whole))
        text = (json.dumps(config, indent=2) + "\n").encode()
        numbers = Settings(
            config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"], False, model.dropout
        )
        weights = tensors_to_bytes(_copies(own), metadata={"format": "pt", _SETTINGS: numbers.checksum()})
        files = {WEIGHTS: weights, CONFIG: text}
        if type(model.head) is LinearHead:
            about = {"pooling": model.pooling.value, "weights": hashlib.sha256(weights).hexdigest()}
            files[HEAD] = tensors_to_bytes(_copies(model.head.state_dict()), metadata=about)
        elif whole is None:
            warn_of_head(model.head, prefix)
        replace_folder(folder, files)


_FACTORS = ("lora_A", "lora_B")


def _written_layers(model: AdapterModel) -> dict[str, AdaptedLinear]:
    layers = {path: layer for path, layer in adapted_layers(model.backbone).items() if layer.rank > 0}
    require_plain(model, layers)
    return layers


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _config(
    model: AdapterModel, layers: Mapping[str, AdaptedLinear], prefix: str, task_type: str | None
) -> dict[str, Any]:
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alphas = {path: layer.scaling * layer.rank for path, layer in layers.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    linear = [path for path, module in model.backbone.named_modules() if isinstance(module, AdaptedLinear)]
    linear += [path for path, module in model.backbone.named_modules() if dimensions(module) is not None]
    meant = {path for path in linear if any(path == own or path.endswith(f".{own}") for own in layers)}
    names = [f"{prefix}{path}" for path in layers]
    return {
        "peft_type": "LORA",
        # With SEQ_CLS or TOKEN_CLS PEFT would look for the head's tensors, which are in a file of their own.
        "task_type": task_type if task_type in {"CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"} else None,
        "base_model_name_or_path": str(getattr(model.backbone.config, "_name_or_path", "") or "") or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": model.dropout,
        # PEFT takes a list's entries for suffixes, and a string for a regular expression of whole paths.
        "target_modules": names if meant == set(layers) else "|".join(re.escape(name) for name in names),
        "fan_in_fan_out": all(is_conv1d(layer.base_layer) for layer in layers.values()),
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {
            f"^{re.escape(prefix + path)}": layer.rank for path, layer in layers.items() if layer.rank != rank
        },
        "alpha_pattern": {f"^{re.escape(prefix + path)}": a for path, a in alphas.items() if a != alpha},
    }
