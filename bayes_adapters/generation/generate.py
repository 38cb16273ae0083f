"""Text by Hugging Face's own ``generate``, every pass of it under draws of the posterior that are held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.data.rows import fold
from bayes_adapters.errors import choice, integer, whole_number
from bayes_adapters.generation._checks import (
    check_options,
    check_prompts,
    require_language_model,
    require_one_function,
    require_written,
)
from bayes_adapters.generation.chosen import Chosen
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
    require_language_model(model)
    require_one_function(model, guide)
    writing = choice(Writing, "writing", writing)
    whole_number("num_samples", num_samples)
    seed, tau = integer("seed", seed), temperature_of(guide, posterior_temperature)
    samples = 1 if mean_only else num_samples
    backbone: Any = model.backbone
    config, left = check_options(backbone, options, tokenizer)
    batch = prompts if isinstance(prompts, Batch) else Batch(dict(prompts))
    batch = batch.without_targets().to(next(model.parameters()).device)
    batch = replace(batch, inputs=check_prompts(model, batch, config))
    together = writing is Writing.AVERAGE
    inputs = {name: value if together else fold(value, samples) for name, value in batch.inputs.items()}
    draws = HeldDraws(model, guide, batch, samples, together, seed, tau, mean_only)
    chosen, criteria = _noting(draws, config, left.pop("stopping_criteria", None), tokenizer)
    devices = [batch.ids.device] if batch.ids.device.type == "cuda" else []
    with evaluating(model, guide), torch.random.fork_rng(devices), draws.held():
        torch.manual_seed(seed % (1 << 63))
        sequences: Tensor = backbone.generate(**inputs, generation_config=config, stopping_criteria=criteria, **left)
    tokens, written = chosen.within(sequences)
    require_written(tokens)
    return _result(tokens, written, draws.steps[: tokens.shape[1]], samples, writing, tokenizer)


def _noting(draws: HeldDraws, config: Any, given: Any, tokenizer: Any) -> tuple[Chosen, Any]:
    """Return what notes the tokens, and all criteria to stop at that Hugging Face does not make of ``config``.

    Criteria that end all rows at once stay by themselves, so that Hugging Face finds them in the place of its own.
    """
    from transformers import MaxLengthCriteria, MaxTimeCriteria, StoppingCriteriaList, StopStringCriteria

    of_all = [one for one in given or () if isinstance(one, (MaxLengthCriteria, MaxTimeCriteria))]
    of_rows = [one for one in given or () if one not in of_all]
    if config.stop_strings:
        of_rows.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=config.stop_strings))
        config.stop_strings = None
    ends = config.eos_token_id
    ends = [] if ends is None else torch.as_tensor(ends).flatten().tolist()
    chosen = Chosen(draws.write, ends, of_rows)
    return chosen, StoppingCriteriaList([*of_all, chosen])


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
