"""What stands before the backbone's paths in the model that PEFT loads adapters into."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bayes_adapters.files._peft_checks import no_prefix, require_module, require_prefix
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.files.marks import Marks
from bayes_adapters.heads import TransformersHead
from bayes_adapters.inference.model import AdapterModel

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Place:
    """Where PEFT is to load adapters.

    Args:
        prefix: before every path, such as ``model.``; empty for the backbone itself.
        task_type: PEFT's name of the task, or None.
    """

    prefix: str
    task_type: str | None


def place_of(model: AdapterModel, prefix: str | None, into: nn.Module | None) -> Place:
    """Return the place: what is said, what an import has found, or what the backbone's checkpoint is.

    Args:
        model: without wrappers.
        prefix: said by the caller, or None.
        into: the model that PEFT is to load the adapters into, or None; its paths are compared.

    Raises:
        ConfigError: a ``prefix`` that is none, both of them, or ``into`` does not have the adapted layers.
    """
    require_prefix(prefix, into)
    marks = Marks.of(model)
    if into is not None:
        return Place(_prefix_in(into, model), marks.task_type)
    if prefix is None:
        prefix = marks.prefix
    if prefix is None and isinstance(model.head, TransformersHead):
        prefix = model.head.prefix
    if prefix is not None:
        return Place(prefix, marks.task_type)
    found = _checkpoint_prefix(model.backbone)
    return Place(found, marks.task_type or ("CAUSAL_LM" if found else None))


def is_whole(backbone: nn.Module) -> bool:
    """Whether ``backbone`` is a transformers model with a head, so that no other stands around it."""
    name = str(getattr(backbone, "base_model_prefix", "") or "")
    return bool(name) and isinstance(getattr(backbone, name, None), nn.Module)


def _prefix_in(net: nn.Module, model: AdapterModel) -> str:
    require_module(net)
    with unwrapped(net) as plain:
        modules = dict(plain.named_modules())
        within = [f"{path}." if path else "" for path, module in modules.items() if module is model.backbone]
        if within:
            return within[0]
        first, *others = model.layers
        ends = [path[: len(path) - len(first)] for path in modules if path == first or path.endswith(f".{first}")]
        fitting = [prefix for prefix in ends if all(prefix + other in modules for other in others)]
    if len(fitting) != 1:
        raise no_prefix(net, model.layers, fitting)
    return fitting[0]


def _checkpoint_prefix(backbone: nn.Module) -> str:
    """Return the prefix in the language model that the backbone's checkpoint is, by its config; empty if it is none."""
    import transformers

    config: Any = getattr(backbone, "config", None)
    name = next(iter(getattr(config, "architectures", None) or ()), "")
    kind = getattr(transformers, name, None) if name.endswith(_LANGUAGE_MODELS) else None
    if kind is None or isinstance(backbone, kind) or not isinstance(config, kind.config_class):
        return ""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # no attention runs here, and the backbone's may need a GPU
    with torch.device("meta"):
        net = kind(config)
    base = getattr(net, net.base_model_prefix, None)
    return f"{net.base_model_prefix}." if type(base) is type(backbone) else ""
