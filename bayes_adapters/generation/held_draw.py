"""Draws that are held over every pass of a backbone while it writes: one function of the whole text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import ForwardPass, Weights, draw_weights, running
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.backbones.language_models import KEEP
from bayes_adapters.data.batch import Batch
from bayes_adapters.data.rows import fold
from bayes_adapters.data.streams import SOURCE_MASK, TARGET_MASK, TARGETS
from bayes_adapters.generation._checks import require_numbers
from bayes_adapters.heads.output_path import output_needs_all
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KeyedDraws, OwnSites, PosteriorMean
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.tempering import Tempering

_CACHES = ("past_key_values", "cache", "cache_params", "state")
"""Arguments that hold what is kept of earlier tokens."""
_NOT_OF_ROWS = frozenset({*_CACHES, "encoder_outputs", "cache_position", KEEP})
"""Arguments of a language model that are not rows of examples, or have S·B rows already."""


@dataclass
class NextToken:
    """What the draws say of the next token: entropies (N,), nats, and log probabilities of all V tokens."""

    total: Float[Tensor, " N"]
    aleatoric: Float[Tensor, " N"]
    log_mean: Float[Tensor, "N V"]
    log_probs: Float[Tensor, "S B V"]


class Step(NamedTuple):
    """What the draws said of a token that was then written: nats, of N rows, and of S draws × B prompts."""

    total: Float[Tensor, " N"]
    aleatoric: Float[Tensor, " N"]
    log_prob: Float[Tensor, " N"]
    draw_log_probs: Float[Tensor, "S B"]


@dataclass
class HeldDraws:
    """S draws of an adapter, each of which a backbone sees as one function while it writes B texts.

    Draws of weights are made once. Those of tokens are a function of (seed, site, sample, example, number of the
    token), so a pass over one new token, whose past is in a cache, draws what a pass over the whole text would.
    ``generate`` of Hugging Face calls the backbone itself; hooks around these calls put the pass in place.

    Args:
        model, guide: the adapter.
        batch: the prompts: numbers of the examples, and context.
        samples: S.
        together: whether all draws see one text: each row of the backbone's arguments is then repeated for every draw,
            and what it returns are the logarithms of the averaged probabilities. Otherwise the rows are S·B already.
        seed: of the draws.
        temperature: τ of the posterior.
        mean_only: the posterior's mean in the place of draws.
    """

    model: AdapterModel
    guide: AdapterGuide
    batch: Batch
    samples: int
    together: bool
    seed: int
    temperature: float = 1.0
    mean_only: bool = False
    steps: list[Step] = field(default_factory=list)
    _next: NextToken | None = None
    _weights: Weights = field(default_factory=dict)
    _prior: Any = None
    _open: ExitStack | None = None
    _by: nn.Module | None = None
    _seen: Tensor | int = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context every call of the model's backbone runs under the same draws."""
        backbone, ids = self.model.backbone, self.batch.ids
        numbers = torch.arange(self.samples, device=ids.device)
        with ExitStack() as stack:
            stack.enter_context(OwnSites(self.seed, numbers, ids, self.mean_only))
            if self.temperature != 1.0:
                stack.enter_context(Tempering(self.temperature))
            stack.enter_context(PosteriorMean() if self.mean_only else KeyedDraws(self.seed, numbers, ids))
            stack.enter_context(pyro.plate("samples", self.samples, dim=-2))
            stack.enter_context(self.guide)
            self._prior = self.model.prior.sampled((self.samples,), ids.device)
            rows = Rows(self.batch, (self.samples,))
            self._weights = draw_weights(self.model.sites, self._prior, rows)
            self._forget()
            hooks = [
                backbone.register_forward_pre_hook(self._before, with_kwargs=True),
                backbone.register_forward_hook(self._after, always_call=True),
            ]
            encoder = _encoder(backbone)
            if encoder is not None:
                hooks.append(encoder.register_forward_pre_hook(self._before, with_kwargs=True))
                hooks.append(encoder.register_forward_hook(self._encoded, always_call=True))
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()
                self._close()
                self._forget()

    def _before(self, net: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Open a pass for the tokens of this call, and repeat its rows for every draw."""
        if self._open is not None:  # an encoder within a call of the whole backbone, which has its pass
            return args, kwargs
        kwargs = {name: self._folded(name, value) for name, value in kwargs.items()} if self.together else kwargs
        inputs, first, real = _stream(kwargs, self.batch.size, self._seen)
        rows = Rows(Batch(inputs, context=self.batch.context, index=self.batch.ids), (self.samples,))
        held = ForwardPass(rows, self._prior, self._weights, len(self.model.sites), first=first)
        if output_needs_all(self.model.backbone, held):  # a draw for each token, of which few would be the first ones
            kwargs.pop(KEEP, None)
        self._open, self._by = ExitStack(), net
        self._open.enter_context(pyro.plate("data", self.batch.size, dim=-1))
        self._open.enter_context(running(held))
        if net is self.model.backbone:
            self._seen = first + real
        return args, kwargs

    def write(self, chosen: Int[Tensor, " N"]) -> None:
        """Note what the last pass has said of the tokens that were chosen after it."""
        if self._next is None:
            return
        said, self._next = self._next, None
        of_draws = chosen if self.together else chosen.reshape(self.samples, -1)
        draws = said.log_probs.gather(-1, of_draws.expand(said.log_probs.shape[:2])[..., None])[..., 0]
        self.steps.append(Step(said.total, said.aleatoric, said.log_mean.gather(-1, chosen[:, None])[:, 0], draws))

    def _after(self, _: nn.Module, args: Any, output: Any) -> Any:
        """Close the pass, note what it says of the next token, and return what all draws say together."""
        self._close()
        if output is None:  # the call has failed
            return None
        logits = output.logits[:, -1].reshape(self.samples, self.batch.size, -1)
        self._next = _next_token(logits, together=self.together)
        require_numbers(self.model, self._next.log_probs)
        if self.together:
            output.logits = self._next.log_mean[:, None]
        return output

    def _encoded(self, net: nn.Module, args: Any, output: Any) -> None:
        if self._by is net:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = self._by = None
        self._forget()

    def _forget(self) -> None:
        self.guide.trace = type(self.guide.trace)()

    def _folded(self, name: str, value: Any) -> Any:
        if name in _NOT_OF_ROWS or not isinstance(value, Tensor) or value.dim() < 2:
            return value
        if name == "position_ids" and value.dim() == 3:  # of three axes of an image, examples second
            return value.repeat(1, self.samples, 1)
        return fold(value, self.samples)


def _stream(
    kwargs: Mapping[str, Any], examples: int, seen: Tensor | int
) -> tuple[dict[str, Tensor], Int[Tensor, " B"], Tensor | int]:
    """Return the tokens of a call as inputs of B examples, the number of each one's first token, and how many are real.

    A mask that is longer than the tokens marks those before them, too, whose keys and values are in a cache; without
    one, as in a recurrent model's later calls, ``seen`` are the tokens before. The rows of one example have one mask:
    what the draws write has no padding within.
    """
    name = _tokens_of(kwargs)
    tokens: Tensor = kwargs[name][:examples]
    decodes = name in TARGETS
    inputs = {name: tokens}
    if decodes and isinstance(source := kwargs.get(SOURCE_MASK), Tensor):
        inputs[SOURCE_MASK] = source[:examples]
    own, length = TARGET_MASK if decodes else SOURCE_MASK, tokens.shape[1]
    mask = kwargs.get(own)
    if isinstance(mask, Tensor) and mask.dim() == 2 and name != "input_features":  # whose second axis is no time
        mask = mask[:examples]
        inputs[own] = mask[:, -length:]
        return inputs, mask[:, :-length].sum(-1), inputs[own].sum(-1)
    goes_on = any(kwargs.get(cache) is not None for cache in _CACHES)
    return inputs, torch.zeros(examples, dtype=torch.int64, device=tokens.device) + (seen if goes_on else 0), length


def _tokens_of(kwargs: Mapping[str, Any]) -> str:
    """The argument that the tokens of a call come in."""
    names = (*TARGETS, "input_ids", "inputs_embeds", "input_features")
    return next(name for name in names if isinstance(kwargs.get(name), Tensor))


def _next_token(logits: Float[Tensor, "S B V"], *, together: bool) -> NextToken:
    log_probs = logits.float().log_softmax(-1)
    entropies = torch.special.entr(log_probs.exp()).sum(-1)
    if not together:
        flat = entropies.flatten()
        return NextToken(flat, flat, log_probs.flatten(0, 1), log_probs)
    log_mean = log_probs.logsumexp(0) - math.log(len(log_probs))
    return NextToken(torch.special.entr(log_mean.exp()).sum(-1), entropies.mean(0), log_mean, log_probs)


def _encoder(backbone: nn.Module) -> nn.Module | None:
    if not getattr(getattr(backbone, "config", None), "is_encoder_decoder", False):
        return None
    encoder: nn.Module = backbone.get_encoder()  # type: ignore[operator]
    return encoder
