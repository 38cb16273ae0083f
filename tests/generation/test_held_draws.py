"""One draw is one function of a whole text: cached or not, padded or not, and it is the draw that weights say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, adapted_layers, predict
from bayes_adapters.generation import generate
from bayes_adapters.inference.draws import weight_draw
from tests.generation.parts import gpt2, llama, mamba, pair, prompts, t5

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
NETS = [(llama, ["q_proj", "v_proj", "down_proj"]), (gpt2, ["c_attn"]), (t5, ["q", "v", "wo"])]


def _same_with_and_without_a_cache(kind: str, net: Any, targets: list[str]) -> None:
    model, guide = pair(kind, net, targets)
    cached, whole = (
        generate(model, guide, prompts(), num_samples=3, max_new_tokens=5, use_cache=cache) for cache in (True, False)
    )
    assert torch.equal(cached.tokens, whole.tokens)
    torch.testing.assert_close(cached.draw_log_probs, whole.draw_log_probs, rtol=1e-4, atol=3e-5)
    assert float(cached.epistemic.min(-1).values.max()) > 1e-4  # draws do differ


@pytest.mark.parametrize(("make", "targets"), NETS)
@pytest.mark.parametrize("kind", ["blob", "c-lora"])
def test_a_cache_does_not_change_what_is_written(make: Callable[[], Any], targets: list[str], kind: str) -> None:
    _same_with_and_without_a_cache(kind, make(), targets)


@pytest.mark.parametrize(("make", "targets"), [(llama, ["q_proj", "lm_head"]), (mamba, ["in_proj"])])
def test_output_layers_and_recurrent_states_hold_a_draw_per_token_too(
    make: Callable[[], Any], targets: list[str]
) -> None:
    _same_with_and_without_a_cache("c-lora", make(), targets)


@pytest.mark.parametrize("kind", ["blob", "c-lora"])
def test_a_prompt_alone_is_gone_on_from_as_in_a_batch(kind: str) -> None:
    model, guide = pair(kind, llama(), ["q_proj", "v_proj"])
    both = generate(model, guide, prompts(), num_samples=3, max_new_tokens=4)
    one = {"input_ids": torch.tensor([[9, 10]])}
    alone = generate(model, guide, Batch(one, index=torch.tensor([1])), num_samples=3, max_new_tokens=4)
    assert torch.equal(alone.tokens[0], both.tokens[1])
    torch.testing.assert_close(alone.draw_log_probs[:, 0], both.draw_log_probs[:, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "targets"), NETS[:2])
@pytest.mark.parametrize("kind", ["blob", "c-lora"])
def test_a_text_is_as_probable_as_predict_says(make: Callable[[], Any], targets: list[str], kind: str) -> None:
    """The same draws as those of one pass over prompt and text, whose prompt has no labels."""
    model, guide = pair(kind, make(), targets)
    found = generate(model, guide, prompts(), num_samples=3, max_new_tokens=4, seed=7)
    ids = torch.cat([prompts()["input_ids"], found.tokens], -1)
    mask = torch.cat([prompts()["attention_mask"], torch.ones_like(found.tokens)], -1)
    labels = torch.cat([torch.full((3, 4), -100), found.tokens], -1)
    said = predict(model, guide, Batch({"input_ids": ids, "attention_mask": mask}, labels), num_samples=3, seed=7)
    close(said.log_density, found.mixture_log_prob)


def _merged(model: Any, guide: Any, number: int, seed: int) -> Any:
    """The plain Hugging Face model with draw ``number`` in its weights."""
    draw = weight_draw(model, guide, number, seed=seed)["A.global"]
    net = copy.deepcopy(model.backbone)
    for i, (path, layer) in enumerate(adapted_layers(net).items()):
        base = layer.base_layer
        with torch.no_grad():
            base.weight += layer.scaling * layer.lora_B @ draw[i]
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, base)
    return net


def test_every_draw_writes_what_a_model_with_its_weights_writes() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    found = generate(model, guide, prompts(), num_samples=3, max_new_tokens=5, writing="each", seed=7)
    assert found.tokens.shape == (9, 5)
    for s in range(3):
        net = _merged(model, guide, s, 7)
        plain = net.generate(
            **prompts(), max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        rows = slice(3 * s, 3 * s + 3)
        assert torch.equal(found.tokens[rows], plain.sequences[:, 4:])
        log_probs = torch.stack(plain.logits, 1).log_softmax(-1)
        chosen = log_probs.gather(-1, plain.sequences[:, 4:, None])[..., 0]
        torch.testing.assert_close(found.log_probs[rows], chosen, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.draw_log_probs[s], chosen, rtol=1e-4, atol=1e-5)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        torch.testing.assert_close(found.total[rows], entropy, rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in found.tokens.tolist()}) > 3
    assert found.epistemic.max() == 0


def test_all_draws_write_the_token_that_is_most_probable_on_average() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    found = generate(model, guide, prompts(), num_samples=3, max_new_tokens=4, seed=7)
    nets = [_merged(model, guide, s, 7) for s in range(3)]
    ids, mask = prompts()["input_ids"], prompts()["attention_mask"]
    for t in range(4):
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        probs = torch.stack(
            [net(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, -1].softmax(-1) for net in nets]
        ).detach()
        mean = probs.mean(0)
        chosen = mean.argmax(-1)
        assert torch.equal(found.tokens[:, t], chosen)
        total = torch.special.entr(mean).sum(-1)
        aleatoric = torch.special.entr(probs).sum(-1).mean(0)
        close(found.total[:, t], total)
        close(found.aleatoric[:, t], aleatoric)
        close(found.epistemic[:, t], total - aleatoric)
        close(found.log_probs[:, t], mean.gather(-1, chosen[:, None])[:, 0].log())
        close(found.draw_log_probs[:, :, t], probs.gather(-1, chosen.expand(3, -1)[..., None])[..., 0].log())
        ids, mask = torch.cat([ids, chosen[:, None]], -1), torch.cat([mask, mask.new_ones(3, 1)], -1)
    close(found.sequence_log_prob, found.log_probs.sum(-1))
    close(found.mixture_log_prob, found.draw_log_probs.sum(-1).exp().mean(0).log())
    close(found.perplexity, (-found.log_probs.mean(-1)).exp())
    close(found.mean("total"), found.total.mean(-1))


def test_a_seed_writes_the_same_again_and_leaves_torchs_generator_alone() -> None:
    model, guide = pair("c-lora", llama(), ["q_proj"])
    options: dict[str, Any] = {"num_samples": 3, "max_new_tokens": 6, "do_sample": True, "top_k": 0}
    before = torch.get_rng_state()
    first, again = (generate(model, guide, prompts(), seed=3, **options) for _ in range(2))
    other = generate(model, guide, prompts(), seed=4, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_the_mean_and_a_colder_posterior_write_too() -> None:
    model, guide = pair("blob", llama(), ["q_proj"])
    mean = generate(model, guide, prompts(), mean_only=True, max_new_tokens=3)
    assert mean.num_samples == 1
    assert mean.epistemic.max() == 0
    cold = generate(model, guide, prompts(), posterior_temperature=1e-8, num_samples=2, max_new_tokens=3)
    assert torch.equal(cold.tokens, mean.tokens)
    torch.testing.assert_close(cold.log_probs, mean.log_probs, rtol=1e-3, atol=1e-3)
