"""The head beside a PEFT adapter: whether it computes the same on a plain backbone, and in which form."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.errors import ConfigError
from bayes_adapters.files._file_checks import unreadable
from bayes_adapters.files._peft_checks import LINEAR, no_head, require_own_head
from bayes_adapters.files._peft_write import HEAD
from bayes_adapters.files._tensor_file import TensorFile
from bayes_adapters.heads import LinearHead, TransformersHead
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.transformers_head import TASKS, task_model
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood

_ON_POOLER = {"bert", "albert", "ernie", "swin", "swinv2"}
"""Hugging Face's types of models whose ``classifier`` is one linear layer on ``pooler_output``."""
_ON_FIRST = {"vit", "deit"}
"""… on the first token's last hidden state."""


@dataclass(frozen=True)
class Head:
    """One linear layer.

    Args:
        tensors: weight (K, d) and perhaps bias (K,).
        pooling: what it reads; None if that is not known.
    """

    tensors: dict[str, Tensor]
    pooling: Pooling | None


def own_head(folder: Path, weights: str) -> Head | None:
    """Return the head that :func:`bayes_adapters.files.peft.to_peft` has written, or None.

    Raises:
        AdapterFileError: it cannot be read, or was written with other weights than those of this SHA-256.
    """
    path = folder / HEAD
    try:
        file = TensorFile.open(path)
        tensors, _ = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    require_own_head(path, file.metadata, tensors, weights, list(Pooling))
    return Head(tensors, Pooling(file.metadata["pooling"]))


def foreign_head(others: Mapping[str, Tensor], backbone: nn.Module, task_type: str | None) -> Head | None:
    """Return the head among PEFT's tensors if it is one linear layer, with what it reads where that is known.

    ``score`` without a bias is transformers' head of decoders on the last real token; a ``classifier`` reads what its
    type of model says; with the task TOKEN_CLS either reads every token, unless the type of model has more layers.
    """
    modules = {name.rpartition(".")[0] for name in others}
    tensors = {name.rpartition(".")[2]: value for name, value in others.items()}
    if len(modules) != 1 or "weight" not in tensors or not set(tensors) <= LINEAR or tensors["weight"].dim() != 2:
        return None
    module, kind = modules.pop(), getattr(getattr(backbone, "config", None), "model_type", "")
    if task_type == "TOKEN_CLS":
        whole, _ = _layout("TOKEN_CLS", backbone, 1)
        alone = module in {"score", "classifier"} and set(whole or others) == set(others)
        return Head(tensors, Pooling.NONE if alone else None)
    if module == "score" and "bias" not in tensors:
        return Head(tensors, Pooling.LAST)
    if module == "classifier" and kind in _ON_POOLER and getattr(backbone, "pooler", None) is not None:
        return Head(tensors, Pooling.POOLER)
    if module == "classifier" and kind in _ON_FIRST:
        return Head(tensors, Pooling.CLS)
    return Head(tensors, None)


def task_head(
    others: Mapping[str, Tensor], prefix: str, backbone: nn.Module, likelihood: Likelihood, task_type: str | None
) -> TransformersHead | None:
    """Return a fresh head of transformers' own for the task, if ``others`` are all of its tensors and no more.

    Args:
        others: tensors that are no adapter's, by their names in the model that was trained.
        prefix: what stands before the backbone's paths there.
        backbone: the plain one.
        likelihood: says how many outputs there are, and whether for each token.
        task_type: PEFT's name of the task, or None.
    """
    task = _task(likelihood, task_type)
    layout, own_prefix = _layout(task, backbone, likelihood.num_outputs)
    if not layout or {name: tuple(v.shape) for name, v in others.items()} != layout or prefix != own_prefix:
        return None
    return TransformersHead(task, backbone.config)


def _task(likelihood: Likelihood, task_type: str | None) -> str:
    own = "TOKEN_CLS" if likelihood.per_token else "SEQ_CLS"
    return own if task_type in (None, own) else ""


def _layout(task: str, backbone: nn.Module, num_outputs: int) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return name → shape of the tensors of transformers' head for the task, and the prefix of the backbone's paths.

    There are none where transformers has no such head, or puts it on another class of backbone.
    """
    if task not in TASKS or not hasattr(backbone, "config"):
        return {}, ""
    try:
        net, base, kind = task_model(task, backbone.config, num_outputs)
    except ConfigError:
        return {}, ""
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    return (shapes, f"{base}.") if kind is type(backbone) else ({}, "")


@torch.no_grad()
def take_head(
    model: AdapterModel, folder: Path, found: Head | None, others: Mapping[str, Tensor], *, wanted: bool, own: bool
) -> bool:
    """Give the model the head that was found, if it computes the same there; say whether it now has a trained one.

    Args:
        model: with a fresh head.
        folder: for messages.
        found: the head of the folder, if it is one linear layer.
        others: all tensors of the folder that are no adapter's.
        wanted: take it even if what it read is not known.
        own: the user has chosen what the head reads.

    Raises:
        ConfigError: it is ``wanted`` and there is none that fits.

    Warns:
        UserWarning: the model keeps its fresh head.
    """
    current: Any = model.head
    shape = tuple(current.weight.shape)
    per_token = model.likelihood.per_token
    fits = found is not None and tuple(found.tensors["weight"].shape) == shape
    fits = fits and (found.pooling is None or (found.pooling is Pooling.NONE) == per_token)  # type: ignore[union-attr]
    has = _shapes(others if found is None else found.tensors)
    if wanted and not fits:
        raise no_head(folder, shape, per_token, has, _lacking(model, others))
    if found is None or not fits or (found.pooling is None and not wanted):
        left = f"The head in {str(folder)!r} ({has}) was not taken over"
        what = f"{str(folder)!r} brings no head" if has == "none" else left
        warnings.warn(
            f"{what}: it must be known to be one linear layer of shape {shape} on what this backbone returns. The "
            "model has a fresh head, which answers at random until it is trained. head=False says that this is meant."
            f"{_lacking(model, others)}",
            stacklevel=4,
        )
        return False
    bias = found.tensors.get("bias")
    current.load_state_dict({"weight": found.tensors["weight"], "bias": bias if bias is not None else current.bias * 0})
    if found.pooling is not None and not own:
        model.head.pooling = found.pooling
    return True


def _lacking(model: AdapterModel, others: Mapping[str, Tensor]) -> str:
    """Say which parts of transformers' head a folder does not hold that holds others of them."""
    layout, _ = _layout(_task(model.likelihood, None), model.backbone, model.likelihood.num_outputs)
    missing = {name.partition(".")[0] for name in set(layout) - set(others)}
    if not missing or not set(others) & set(layout):
        return ""
    return (
        f" PEFT has not saved {', '.join(sorted(missing))} of transformers' head: train with modules_to_save="
        f"{list(dict.fromkeys(name.partition('.')[0] for name in layout))}."
    )


def placed_head(head: nn.Module, prefix: str, model: AdapterModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the head's tensors by their names in the task model that PEFT adapts, and entries of PEFT's configuration.

    Both are empty where the model with this ``prefix`` has no head of that formula: transformers' own head belongs to
    its architecture; a linear head is the architecture's ``classifier`` or ``score`` if it has its shape, reads what
    that reads, and has no bias where that has none.
    """
    if isinstance(head, TransformersHead):
        if head.prefix != prefix:
            return {}, {}
        parts = [name for name, part in head.net.named_children() if next(part.parameters(), None) is not None]
        return dict(head.net.state_dict()), {"task_type": head.task, "modules_to_save": parts}
    if type(head) is not LinearHead or not prefix:
        return {}, {}
    task = _task(model.likelihood, None)
    layout, own_prefix = _layout(task, model.backbone, model.likelihood.num_outputs)
    own = dict(head.named_parameters())
    tensors = {name: own[part].detach() for name in layout if (part := name.rpartition(".")[2]) in own}
    fits = {name: tuple(value.shape) for name, value in tensors.items()} == layout
    found = foreign_head(tensors, model.backbone, task) if fits and layout and prefix == own_prefix else None
    if found is None or found.pooling is not head.pooling or ("bias" not in found.tensors and bool(head.bias.any())):
        return {}, {}
    return tensors, {"task_type": task, "modules_to_save": [next(iter(tensors)).rpartition(".")[0]]}


def warn_of_base(names: Sequence[str]) -> None:
    """Warn that a folder fits the backbone as it is now only, if an import has written ``names`` into it."""
    if names:
        warnings.warn(
            f"from_peft has written {len(names)} tensors into the backbone, such as {names[0]!r}. The folder holds A, "
            "B and head only: load it onto this backbone, saved by backbone.save_pretrained.",
            stacklevel=3,
        )


def warn_of_head(head: nn.Module, prefix: str) -> None:
    """Warn that ``to_peft`` did not write this head."""
    other = isinstance(head, TransformersHead)
    what = f"for adapters under {head.prefix!r}, not {prefix!r}" if other else "not one linear layer"
    warnings.warn(
        f"The head is a {type(head).__name__}, {what}, and was not written; bayes_adapters.save keeps it.", stacklevel=3
    )


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()) or "none"
