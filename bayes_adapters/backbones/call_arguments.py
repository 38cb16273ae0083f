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

from bayes_adapters.backbones.language_models import is_language_model
from bayes_adapters.data.streams import TARGETS
from bayes_adapters.errors import BayesAdaptersError, DataError

ABSOLUTE = re.compile(r"(^|\.)(wpe|\w*pos\w*)$")
"""Paths of tables of positions; DeBERTa's, of relative ones, is called rel_embeddings."""
_RELATIVE = ("roformer", "tapas")
"""Types of models whose table of positions is not of places in a row: rotary ones, and those of cells."""
_COMPUTED = ("ctrl", "xglm")
"""Types of models whose absolute positions are in no ``nn.Embedding``."""
_STREAMS = {
    "attention_mask": ("position_ids", ("input_ids", "inputs_embeds")),
    "decoder_attention_mask": ("decoder_position_ids", TARGETS),
}
"""Mask of a stream → the argument for its positions, and those that its tokens come in."""


@dataclass(frozen=True)
class CallRule:
    """What is added to the calls of one encoder.

    Args:
        positions: mask → argument that takes the positions of its tokens.
        unplaced: masks whose tokens have absolute positions that no argument can set.
        start: the position of a text's first token: 0, or what the table keeps for itself (2 in RoBERTa's).
        padding: the position of padding tokens; None counts on after a text's last token, as in BERT.
        cache: whether there is a cache of keys and values to be switched off.
        decodes: whether there is a decoder with tokens of its own.
    """

    positions: Mapping[str, str]
    unplaced: tuple[str, ...]
    start: int
    padding: int | None
    cache: bool
    decodes: bool

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
                out[argument] = positions(call[mask].bool(), self.start, self.padding)
        for mask in self.unplaced:
            if _is_of_tokens(mask, call) and bool((call[mask][:, 1:].bool() & ~call[mask][:, :-1].bool()).any()):
                rows = (call[mask][:, 1:].bool() & ~call[mask][:, :-1].bool()).any(1).nonzero().flatten().tolist()
                raise DataError(
                    f"{mask} has padding before a real token in rows {rows[:8]} (examples × samples), and "
                    f"{name} counts positions from the start of the row, padding included; it takes no "
                    f"{_STREAMS[mask][0]}. Pad on the right: tokenizer.padding_side = 'right'."
                )
        return out


def positions(mask: Bool[Tensor, "rows T"], start: int = 0, padding: int | None = None) -> Int[Tensor, "rows T"]:
    """Number the real tokens of each row from ``start``.

    Padding has the position ``padding``. Where that is None, padding after a text goes on counting, as it does without
    a mask, and padding before a token has that token's number or the one before.

    >>> import torch
    >>> mask = torch.tensor([[False, True, True], [True, True, False]])
    >>> positions(mask).tolist(), positions(mask, start=2, padding=1).tolist()
    ([[0, 0, 1], [0, 1, 2]], [[1, 2, 3], [2, 3, 1]])
    """
    real = mask.long()
    if padding is not None:
        return (real.cumsum(-1) - 1 + start).masked_fill(~mask, padding)
    trailing = real.flip(-1).cumsum(-1).flip(-1) == 0
    return ((mask | trailing).long().cumsum(-1) - 1).clamp_min(0) + start


def call_rule(encoder: nn.Module) -> CallRule:
    """Find out what the calls of ``encoder`` need, from its ``forward`` and its tables of positions."""
    accepted = inspect.signature(encoder.forward).parameters
    table = next((path for path, m in encoder.named_modules() if _is_table(path, m)), None)
    kind = getattr(getattr(encoder, "config", None), "model_type", "")
    # A language model that sees images hands on what it does not name.
    passes_on = any(one.kind is one.VAR_KEYWORD for one in accepted.values()) and is_language_model(encoder)
    cache, decodes = "use_cache" in accepted or passes_on, TARGETS[0] in accepted
    if kind in _RELATIVE or (table is None and kind not in _COMPUTED):
        return CallRule({}, (), 0, None, cache, decodes)
    placed = {mask: argument for mask, (argument, _) in _STREAMS.items() if argument in accepted}
    unplaced = tuple(mask for mask in _STREAMS if mask in accepted and mask not in placed)
    start, padding = (0, None) if table is None else _numbering(encoder, table)
    return CallRule(placed, unplaced, start, padding, cache, decodes)


@contextmanager
def completed_calls(backbone: nn.Module, rules: Mapping[str, CallRule]) -> Iterator[None]:
    """While the context lasts, calls of ``backbone``, or of its encoders, get the arguments that they lack.

    Args:
        backbone: has hooks as long as the context lasts.
        rules: what :func:`call_rules` returned.

    Raises:
        DataError: a decoder has no tokens.
    """
    lacking: list[str] = []

    def complete(rule: CallRule) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if rule.decodes and not any(argument in kwargs for argument in TARGETS):
                lacking.append(type(module).__name__)
            return args, rule.complete(type(module).__name__, kwargs)

        return hook

    with ExitStack() as stack:
        for name, rule in rules.items():
            encoder = backbone.get_submodule(name)
            handle = encoder.register_forward_pre_hook(complete(rule), with_kwargs=True)
            stack.callback(handle.remove)
        try:
            yield
        except ValueError as error:
            if isinstance(error, BayesAdaptersError) or not lacking:  # BART makes them of the source's
                raise
            raise DataError(
                f"{lacking[0]} has a decoder, and the batch has no tokens for it ({error}). Add "
                "inputs['decoder_input_ids'] (B, T), the hidden states of which are returned; for the encoder alone "
                "pass backbone.get_encoder(), or T5EncoderModel."
            ) from error


def call_rules(backbone: nn.Module) -> dict[str, CallRule]:
    """Return name of each encoder in a ``ModuleDict`` → its rule; of any other backbone under the name ``""``."""
    encoders = dict(backbone.items()) if isinstance(backbone, nn.ModuleDict) else {"": backbone}
    return {name: call_rule(encoder) for name, encoder in encoders.items()}


def _is_of_tokens(mask: str, call: Mapping[str, Any]) -> bool:
    value = call.get(mask)
    return isinstance(value, Tensor) and value.dim() == 2 and any(call.get(k) is not None for k in _STREAMS[mask][1])


def _is_table(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and ABSOLUTE.search(path) is not None


def _numbering(encoder: nn.Module, path: str) -> tuple[int, int | None]:
    """The positions of a text's first token and of padding; OPT and BART add what they leave unused themselves."""
    table = encoder.get_submodule(path)
    padding = getattr(table, "padding_idx", None)
    if padding is not None:
        return int(padding) + 1, int(padding)
    if hasattr(table, "offset"):
        return 0, -1
    usual = getattr(encoder.get_submodule(path.rpartition(".")[0]), "position_ids", None)
    known = isinstance(usual, Tensor) and usual.numel() > 0 and not usual.is_meta
    return (int(usual.flatten()[0]) if known and usual is not None else 0), None
