"""Arguments that a backbone's call needs and a batch leaves out: positions that skip padding, and no cache.

A table of absolute positions is looked up by a token's place in the padded row, unless ``position_ids`` say otherwise.
With padding on the left, as tokenizers of causal models make it, a text would then depend on how far it was padded.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from bayes_adapters.errors import DataError

ABSOLUTE = re.compile(r"(^|\.)(wpe|\w*pos\w*)$")
"""Paths of tables of positions; DeBERTa's, of relative ones, is called rel_embeddings."""
_RELATIVE = ("roformer", "tapas")
"""Types of models whose table of positions is not of places in a row: rotary ones, and those of cells."""
_COMPUTED = ("ctrl", "xglm")
"""Types of models whose absolute positions are in no ``nn.Embedding``."""
_STREAMS = {
    "attention_mask": ("position_ids", ("input_ids", "inputs_embeds")),
    "decoder_attention_mask": ("decoder_position_ids", ("decoder_input_ids", "decoder_inputs_embeds")),
}
"""Mask of a stream → the argument for its positions, and those that its tokens come in."""


@dataclass(frozen=True)
class CallRule:
    """What is added to the calls of one encoder.

    Args:
        positions: mask → argument that takes the positions of its tokens.
        unplaced: masks whose tokens have absolute positions that no argument can set.
        start: the position of a text's first token: 0, or what the table keeps for itself (2 in RoBERTa's).
        cache: whether there is a cache of keys and values to be switched off.
    """

    positions: Mapping[str, str]
    unplaced: tuple[str, ...]
    start: int
    cache: bool

    def complete(self, name: str, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments ``call`` with those that it lacks.

        Args:
            name: of the encoder's class, for the error.
            call: may hold masks of shape (rows, T); another shape, such as (rows, 1, T, T), says no positions.

        Raises:
            DataError: padding on the left, or between tokens, where no argument could say so.
        """
        out = {"use_cache": False, **call} if self.cache else dict(call)
        for mask, argument in self.positions.items():
            if argument not in call and _is_of_tokens(mask, call):
                out[argument] = positions(call[mask].bool(), self.start)
        for mask in self.unplaced:
            if _is_of_tokens(mask, call) and bool((call[mask][:, 1:].bool() & ~call[mask][:, :-1].bool()).any()):
                rows = (call[mask][:, 1:].bool() & ~call[mask][:, :-1].bool()).any(1).nonzero().flatten().tolist()
                raise DataError(
                    f"{mask} has padding before a real token in rows {rows[:8]} (examples × samples), and "
                    f"{name} counts positions from the start of the row, padding included; it takes no "
                    f"{_STREAMS[mask][0]}. Pad on the right: tokenizer.padding_side = 'right'."
                )
        return out


def positions(mask: Bool[Tensor, "rows T"], start: int = 0) -> Int[Tensor, "rows T"]:
    """Number the real tokens of each row from ``start``; a padding token has its predecessor's number, or ``start``.

    >>> import torch
    >>> positions(torch.tensor([[False, True, True], [True, True, False]]), start=2).tolist()
    [[2, 2, 3], [2, 3, 3]]
    """
    return (mask.long().cumsum(-1) - 1).clamp_min(0) + start


def call_rule(encoder: nn.Module) -> CallRule:
    """Find out what the calls of ``encoder`` need, from its ``forward`` and its tables of positions."""
    accepted = inspect.signature(encoder.forward).parameters
    table = next((path for path, m in encoder.named_modules() if _is_table(path, m)), None)
    kind, cache = getattr(getattr(encoder, "config", None), "model_type", ""), "use_cache" in accepted
    if kind in _RELATIVE or (table is None and kind not in _COMPUTED):
        return CallRule({}, (), 0, cache)
    placed = {mask: argument for mask, (argument, _) in _STREAMS.items() if argument in accepted}
    unplaced = tuple(mask for mask in _STREAMS if mask in accepted and mask not in placed)
    return CallRule(placed, unplaced, 0 if table is None else _start(encoder, table), cache)


@contextmanager
def completed_calls(backbone: nn.Module, rules: Mapping[str, CallRule]) -> Iterator[None]:
    """While the context lasts, calls of ``backbone``, or of its encoders, get the arguments that they lack.

    Args:
        backbone: has hooks as long as the context lasts.
        rules: what :func:`call_rules` returned.
    """

    def complete(rule: CallRule) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, rule.complete(type(module).__name__, kwargs)

        return hook

    with ExitStack() as stack:
        for name, rule in rules.items():
            encoder = backbone.get_submodule(name)
            handle = encoder.register_forward_pre_hook(complete(rule), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def call_rules(backbone: nn.Module) -> dict[str, CallRule]:
    """Return name of each encoder in a ``ModuleDict`` → its rule; of any other backbone under the name ``""``."""
    encoders = dict(backbone.items()) if isinstance(backbone, nn.ModuleDict) else {"": backbone}
    return {name: call_rule(encoder) for name, encoder in encoders.items()}


def _is_of_tokens(mask: str, call: Mapping[str, Any]) -> bool:
    value = call.get(mask)
    return isinstance(value, Tensor) and value.dim() == 2 and any(call.get(k) is not None for k in _STREAMS[mask][1])


def _is_table(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and ABSOLUTE.search(path) is not None


def _start(encoder: nn.Module, table: str) -> int:
    """The position of the first token; OPT and BART add the rows that they leave unused themselves."""
    padding = getattr(encoder.get_submodule(table), "padding_idx", None)
    if padding is not None:
        return int(padding) + 1
    usual = getattr(encoder.get_submodule(table.rpartition(".")[0]), "position_ids", None)
    return int(usual.flatten()[0]) if isinstance(usual, Tensor) and usual.numel() else 0
