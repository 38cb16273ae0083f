"""Text by Hugging Face's own ``generate``, every pass of it under draws of the posterior that are held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.data.rows import fold
from bayes_adapters.errors import choice, integer, whole_number
from bayes_adapters.generation._checks import check_options, check_prompts, require_language_model, require_written
from bayes_adapters.generation.generation import Generation, Writing
from bayes_adapters.generation.held_draw import HeldDraws, Step
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_one_device, require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.inference.tempering import temperature_of


@exclusive()
@torch.no_grad()
def generate(
    model: AdapterModel,
    guide: AdapterGuide,
    prompts: Batch | Mapping[str, Tensor],
    *,
    num_samples: int = 8,
    writing: Writing | str = Writing.AVERAGE,
    seed: int = 0,
    mean_only: bool = False,
    posterior_temperature: float | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> Generation:
    """Let the model's backbone write texts after ``prompts``, and say how sure S posterior draws are of every token.

    Formula: ``y_t ~ p̄(· | y_<t) = (1/S) Σ_s p(· | y_<t, E_s)`` with ``writing="average"``, and ``y_t^s ~ p(· | y_<t^s,
    E_s)`` with ``"each"``, E_s ~ q. One draw is one function of a whole text: draws of weights are held from the first
    token to the last, and a token's local draw is a function of (seed, s, example, number of the token), so that keys
    and values in the cache are those of the same draw. It is Hugging Face's ``generate`` that writes, with its own
    cache, sampling, stopping and streaming; only the backbone's calls in it run under the draws. With ``"average"`` it
    sees B rows and the averaged distribution, whose logarithms are its logits.

    Averaging weighs the draws alike at each step, whatever they said of the text before it: see
    :attr:`Generation.mixture_log_prob`.

    Args:
        model: its backbone is a Hugging Face model with ``generate``, decoder or encoder–decoder. The head is not used.
        guide: made for it.
        prompts: what a tokenizer returns for B prompts, or a batch, whose context conditions the adapters. A decoder's
            prompts are padded on the left.
        num_samples: S ≥ 1.
        writing: ``"average"``: all draws write one text per prompt; ``"each"``: every draw its own.
        seed: of the draws, as in :func:`bayes_adapters.predict`, and of the sampling of tokens.
        mean_only: write under the posterior's mean: one draw.
        posterior_temperature: τ as ``temperature=`` of :func:`bayes_adapters.predict`; that name is Hugging Face's own
            option here.
        tokenizer: decodes the texts; ``stop_strings`` need it.
        **options: of Hugging Face's ``generate``: ``max_new_tokens``, ``do_sample``, ``temperature``, ``top_p``,
            ``stop_strings``, ``streamer``, ``generation_config``, … Refused are those that break the draws: beams,
            several returned sequences, assisted decoding, a cache of your own or one of fixed size.

    Returns:
        A :class:`Generation`.

    Raises:
        ConfigError: the backbone has no ``generate``, the guide is another model's, or an option is refused.
        DataError: empty prompts, or a decoder's padded on the right.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from bayes_adapters import guides, models
    >>> from bayes_adapters.heads import LanguageModelHead
    >>> from bayes_adapters.likelihoods import NextToken
    >>> tiny = LlamaConfig(
    ...     vocab_size=30, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> head = LanguageModelHead()
    >>> model = models.StochasticCore(LlamaForCausalLM(tiny), NextToken(30), targets=["q_proj"], rank=2, head=head)
    >>> prompts = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}
    >>> text = generate(model, guides.Contextual(model), prompts, num_samples=3, max_new_tokens=4, pad_token_id=0)
    >>> text.tokens.shape, bool((text.total >= text.epistemic).all())
    (torch.Size([2, 4]), True)
    """
    require_pair(model, guide)
    require_one_device(model, guide)
    model.require_installed()
    require_language_model(model)
    writing = choice(Writing, "writing", writing)
    whole_number("num_samples", num_samples)
    seed, tau = integer("seed", seed), temperature_of(guide, posterior_temperature)
    samples = 1 if mean_only else num_samples
    backbone: Any = model.backbone
    config, left = check_options(backbone, options, tokenizer)
    batch = prompts if isinstance(prompts, Batch) else Batch(dict(prompts))
    batch = batch.without_targets().to(next(model.parameters()).device)
    check_prompts(backbone, batch.inputs)
    together = writing is Writing.AVERAGE
    inputs = {name: value if together else fold(value, samples) for name, value in batch.inputs.items()}
    draws = HeldDraws(model, guide, batch, samples, together, seed, tau, mean_only)
    devices = [batch.ids.device] if batch.ids.device.type == "cuda" else []
    with evaluating(model, guide), torch.random.fork_rng(devices), draws.held():
        torch.manual_seed(seed % (1 << 63))
        sequences: Tensor = backbone.generate(**inputs, generation_config=config, **left)
    start = 1 if backbone.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    tokens = sequences[:, start:]
    draws.write(tokens)
    require_written(tokens, draws.steps)
    written = _written(tokens, config, tokenizer)
    return _result(tokens, written, draws.steps[: tokens.shape[1]], samples, writing, tokenizer)


def _result(
    tokens: Tensor, written: Tensor, steps: list[Step], samples: int, writing: Writing, tokenizer: Any
) -> Generation:
    total, aleatoric, log_probs = (torch.stack(column, -1) * written for column in list(zip(*steps, strict=True))[:3])
    of_draws = torch.stack([step.draw_log_probs for step in steps], -1)
    each = written.expand(of_draws.shape) if writing is Writing.AVERAGE else written.reshape(of_draws.shape)
    texts = None
    if tokenizer is not None:
        rows = zip(tokens, written, strict=True)
        texts = [tokenizer.decode(row[mask], skip_special_tokens=True) for row, mask in rows]
    epistemic = (total - aleatoric).clamp_min(0.0)
    parts = (total, total - epistemic, epistemic, log_probs, of_draws * each)
    return Generation(tokens, written, *parts, num_samples=samples, writing=writing, texts=texts)


def _written(tokens: Int[Tensor, "N T"], config: Any, tokenizer: Any) -> Bool[Tensor, "N T"]:
    """Where a token was written, the end-of-sequence token included: behind it Hugging Face fills up with padding."""
    ends = config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    end = torch.isin(tokens, tokens.new_tensor(ends)) if ends else torch.zeros_like(tokens, dtype=torch.bool)
    behind = (end.cumsum(-1) - end.long()) > 0
    if config.stop_strings:
        stops = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings
        for row, mask in zip(tokens, behind, strict=True):
            for n in range(1, len(row)):
                if any(stop in tokenizer.decode(row[:n]) for stop in stops):
                    mask[n:] = True
                    break
    return ~behind
