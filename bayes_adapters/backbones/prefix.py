"""The frozen prefix of a backbone: what comes before the first adapted layer is the same for every draw, and runs once.

S draws of B examples are S·B rows, in the order [S, B]. With the first adapted layer in block k of n::

    embeddings, blocks 0 … k − 1        B rows
    blocks k … n − 1, and what follows  S·B rows

The rows multiply at the call of block k. There, and in every later block, each argument with B rows is repeated S
times: the hidden states, and, once for all blocks, what they all are given (masks, positions, the states of an
encoder). An encoder–decoder has two stacks; where only its decoder is adapted, its encoder is part of the prefix.

Which backbones have such a stack is known by the type of model: :data:`STACKED`. Others see S·B rows from the start, as
do all of several encoders that run side by side.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from bayes_adapters.data.rows import fold
from bayes_adapters.data.streams import TARGETS

STACKED = frozenset(
    {"bart", "bert", "camembert", "clip_vision_model", "deit", "dinov2", "distilbert", "electra", "gemma", "gpt2"}
    | {"gpt_neox", "hubert", "llama", "mbart", "mistral", "modernbert", "mpnet", "mt5", "opt", "phi", "qwen2", "qwen3"}
    | {"roberta", "siglip_vision_model", "swin", "swinv2", "t5", "vit", "wav2vec2", "whisper", "xlm-roberta"}
)
"""Hugging Face's types of models that are embeddings, one stack of blocks (or an encoder's and a decoder's), and
functions of the last block's states. An argument of a block has a row for every example or one for all, other than
DeBERTa's table of relative positions, and nothing after the stack reads the inputs again, as CLIP's text model does its
token ids."""


@dataclass(frozen=True)
class FrozenPrefix:
    """Where the rows of a pass multiply.

    Args:
        blocks: paths of the first block with an adapted layer and of all blocks that run after it.
    """

    blocks: tuple[str, ...]

    def is_still(self, backbone: nn.Module) -> bool:
        """Whether the prefix computes the same for every draw, now and in backward.

        It does in eval mode, or where it drops nothing while it trains.
        """
        behind = tuple(f"{block}." for block in self.blocks)
        if any(_reruns_hooks(backbone.get_submodule(block)) for block in self.blocks):
            return False
        before = [m for path, m in backbone.named_modules() if path not in self.blocks and not path.startswith(behind)]
        return not any(module.training for module in before) or not _drops(backbone, before)

    def run(
        self, backbone: nn.Module, inputs: Mapping[str, Tensor], folds: int, asked: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what ``backbone`` returns for every example ``folds`` times, S·B rows in the order [S, B].

        Args:
            backbone: has hooks as long as it runs.
            inputs: its arguments, B rows each.
            folds: S.
            asked: further arguments, the same for all rows.
        """
        repeat = _Repeat(next(iter(inputs.values())).shape[0], folds)

        def multiply(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return repeat(args), repeat(kwargs)

        with ExitStack() as stack:
            for block in self.blocks:
                handle = backbone.get_submodule(block).register_forward_pre_hook(multiply, with_kwargs=True)
                stack.callback(handle.remove)
            output = backbone(**inputs, **(asked or {}))
        return repeat(output)  # an encoder's states that are returned besides the decoder's, and what else has B rows


def frozen_prefix(backbone: nn.Module, layers: Sequence[str]) -> FrozenPrefix | None:
    """Find the frozen prefix of ``backbone``, of which the layers at the paths ``layers`` are adapted.

    Returns:
        None where the type of model has none that is known; where a layer outside the blocks is adapted; or where an
        encoder is adapted whose decoder would still see B rows.
    """
    if getattr(getattr(backbone, "config", None), "model_type", "") not in STACKED:
        return None
    lists = [path for path, module in backbone.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    blocks = [f"{path}.{name}" for path in outer for name, _ in backbone.get_submodule(path).named_children()]
    first = len(blocks)
    for layer in layers:
        place = next((i for i, block in enumerate(blocks) if layer.startswith(f"{block}.")), None)
        if place is None:
            return None
        first = min(first, place)
    decodes = TARGETS[0] in inspect.signature(backbone.forward).parameters
    if not layers or (decodes and "decoder" not in blocks[first].split(".")):
        return None
    return FrozenPrefix(tuple(blocks[first:]))


class _Repeat:
    """Repeats whatever has ``rows`` rows ``folds`` times, each tensor once for as long as it lives."""

    def __init__(self, rows: int, folds: int) -> None:
        self.rows, self.folds, self._known = rows, folds, WeakIdKeyDictionary()

    def __call__(self, value: Any) -> Any:
        """Return ``value``, a tensor or a structure of some, with every tensor of ``rows`` rows repeated."""
        if isinstance(value, Tensor):
            return self._repeated(value) if value.dim() > 1 and value.shape[0] == self.rows else value
        if type(value) in (tuple, list):
            return type(value)(self(part) for part in value)
        if isinstance(value, dict):  # arguments by name, or a ModelOutput
            return type(value)(**{name: self(part) for name, part in value.items()})
        return value

    def _repeated(self, value: Tensor) -> Tensor:
        if value not in self._known:
            self._known[value] = fold(value, self.folds)
        return self._known[value]


def _reruns_hooks(block: nn.Module) -> bool:
    """Whether ``block`` is checkpointed with its hooks, as in early versions of transformers 5.

    It would run again with one row for each example, for the hooks that multiply rows are gone by then.
    """
    checkpointed = block.training and getattr(block, "gradient_checkpointing", False)
    return checkpointed and type(block).__call__ is not nn.Module.__call__


def _drops(backbone: Any, modules: Sequence[nn.Module]) -> bool:
    """Whether ``modules`` zero, skip or mask something at random in train mode: by their own p, or by the config's."""
    settings = backbone.config.to_dict()
    given = [p for name, p in settings.items() if "drop" in name or name in ("mask_time_prob", "mask_feature_prob")]
    own = [getattr(module, "p", 0.0) for module in modules if "Drop" in type(module).__name__]
    return any(isinstance(p, int | float) and p > 0 for p in (*given, *own))
