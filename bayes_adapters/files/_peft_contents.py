"""What a PEFT folder of plain LoRAs holds: A and B of every layer, PEFT's configuration, and a head where it fits."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.linear_layers import is_conv1d
from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.files._checks import require_finite
from bayes_adapters.files._peft_config import CONFIG, Settings
from bayes_adapters.files._peft_head import placed_head
from bayes_adapters.files._peft_prefix import Place, is_whole
from bayes_adapters.files._peft_tensors import ROOT, WEIGHTS
from bayes_adapters.files._peft_write import HEAD
from bayes_adapters.heads import LinearHead
from bayes_adapters.inference.model import AdapterModel

SETTINGS = "bayes_adapters_settings"  # in the weights' metadata: a checksum of the settings they belong to
_FACTORS = ("lora_A", "lora_B")
_TASKS = {"CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION"}


@dataclass(frozen=True)
class Contents:
    """The files of a folder.

    Args:
        files: name → bytes.
        head: what became of the head: ``"inside"``, among the weights that PEFT loads, or part of the frozen backbone;
            ``"beside"``, in the file that ``from_peft`` reads and PEFT does not; or ``"left out"``.
    """

    files: dict[str, bytes]
    head: str


def contents(
    model: AdapterModel, factors: Mapping[str, tuple[Tensor, Tensor]], head: nn.Module, place: Place
) -> Contents:
    """Return the files of the plain LoRA ``h = W₀ x + scaling · B' A' x`` with this ``head``.

    Args:
        model: says scales, layers and dropout; without wrappers.
        factors: layer path → A' (r, d_in) and B' (d_out, r), r ≥ 1.
        head: of the model, or one that was drawn.
        place: where PEFT is to load them.

    Raises:
        NonFiniteError: a number of the adapters or the head is NaN or infinite.
    """
    own = {
        f"{ROOT}{place.prefix}{path}.{name}.weight": factor
        for path, pair in factors.items()
        for name, factor in zip(_FACTORS, pair, strict=True)
    }
    require_finite(own | {f"head.{name}": p for name, p in head.named_parameters()})
    inside, entries = placed_head(head, place.prefix, model)
    own |= {f"{ROOT}{name}": value for name, value in inside.items()}
    config = _config(model, factors, place) | entries
    numbers = Settings(
        config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"], False, model.dropout
    )
    weights = tensors_to_bytes(_copies(own), metadata={"format": "pt", SETTINGS: numbers.checksum()})
    files = {WEIGHTS: weights, CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
    if not inside and type(head) is LinearHead:
        about = {"pooling": head.pooling.value, "weights": hashlib.sha256(weights).hexdigest()}
        files[HEAD] = tensors_to_bytes(_copies(head.state_dict()), metadata=about)
    within = inside or not any(True for _ in head.parameters())
    return Contents(files, "inside" if within else "beside" if HEAD in files else "left out")


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def _config(model: AdapterModel, factors: Mapping[str, tuple[Tensor, Tensor]], place: Place) -> dict[str, Any]:
    layers, prefix = adapted_layers(model.backbone), place.prefix
    ranks = {path: len(down) for path, (down, _) in factors.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alphas = {path: layers[path].scaling * own for path, own in ranks.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    linear = [path for path, module in model.backbone.named_modules() if isinstance(module, AdaptedLinear)]
    linear += [path for path, module in model.backbone.named_modules() if dimensions(module) is not None]
    meant = {path for path in linear if any(path == own or path.endswith(f".{own}") for own in factors)}
    # A list's entries are suffixes to PEFT: those of a plain backbone would also fit the model around it, whose paths
    # are longer, and then PEFT loads nothing and only warns. A string is an expression of whole paths: PEFT refuses it.
    suffixes = meant == set(factors) and (prefix or is_whole(model.backbone))
    names = [f"{prefix}{path}" for path in factors]
    return {
        "peft_type": "LORA",
        # With SEQ_CLS or TOKEN_CLS PEFT would look for the head's tensors, which may be in a file of their own.
        "task_type": place.task_type if place.task_type in _TASKS else None,
        "base_model_name_or_path": str(getattr(model.backbone.config, "_name_or_path", "") or "") or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": model.dropout,
        "target_modules": names if suffixes else "|".join(re.escape(name) for name in names),
        "fan_in_fan_out": all(is_conv1d(layers[path].base_layer) for path in factors),
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {f"^{re.escape(prefix + path)}": own for path, own in ranks.items() if own != rank},
        "alpha_pattern": {f"^{re.escape(prefix + path)}": a for path, a in alphas.items() if a != alpha},
    }
