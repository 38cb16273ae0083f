"""Uncertainty of texts by hand: entropies of tokens, the information of whole texts, and the memory they take."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from bayes_adapters import ELBO, Batch, predict
from bayes_adapters.distributions import NextTokens, TokenLogits
from bayes_adapters.distributions.token_logits import AT_ONCE
from bayes_adapters.guides import MeanField
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken, TextPrediction
from bayes_adapters.likelihoods import next_token as module
from bayes_adapters.models import StochasticDown


def texts(logits: Tensor) -> list[NextTokens]:
    """Draws (S, B, T, V), those of the first and of all others in two passes."""
    parts = [logits[:1], logits[1:]]
    flat = [TokenLogits(p.flatten(0, 1), lambda hidden: hidden, p.shape[-1], 1, tuple(p.shape[:2])) for p in parts]
    return [NextTokens(one) for one in flat]


def test_tokens_by_hand(monkeypatch: Any) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 2, 5, 7), torch.randint(7, (2, 5))
    labels[0, 2] = labels[1, 4] = -100
    whole = NextToken(7, top=3).predict_held(texts(logits), labels)
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    one_by_one = NextToken(7, top=3).predict_held(texts(logits), labels)
    draws = Categorical(logits=logits[:, :, :-1].double())
    scored = labels[:, 1:] != -100
    mean = draws.probs.mean(0)
    for found in (whole, one_by_one):
        torch.testing.assert_close(found.total[:, 1:], (Categorical(mean).entropy() * scored).float())
        torch.testing.assert_close(found.aleatoric[:, 1:], (draws.entropy().mean(0) * scored).float())
        torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
        best, tokens = mean.topk(3, -1)
        torch.testing.assert_close(found.mean[:, 1:], (best * scored[..., None]).float())
        assert torch.equal(found.tokens[:, 1:], tokens * scored[..., None])
        index = labels[:, 1:].clamp_min(0)
        target = mean.gather(-1, index[..., None])[..., 0] * scored
        torch.testing.assert_close(found.target_probs[:, 1:], target.float())  # type: ignore[index]
        density = (draws.log_prob(index) * scored).sum(-1).exp().mean(0).log()
        torch.testing.assert_close(found.log_density, density.float())
        torch.testing.assert_close(found.nll_per_token, (-density / scored.sum(1)).float())
        torch.testing.assert_close(found.perplexity, (-density.sum() / scored.sum()).exp().float())
        torch.testing.assert_close(found.averaged().total, found.total.sum(1) / scored.sum(1))
        assert found.num_samples == 4
        assert (found.total[:, 0] == 0).all()


def test_the_information_of_a_text_is_its_definition_on_average() -> None:
    torch.manual_seed(1)
    draws, words, length = 3, 3, 3
    table = {h: 2 * torch.randn(draws, words) for n in range(length) for h in itertools.product(range(words), repeat=n)}
    likelihood, estimate, exact = NextToken(words), 0.0, 0.0
    for text in itertools.product(range(words), repeat=length):
        steps = [table[text[:n]] for n in range(length)]  # each draw's logits of the next word, given those before
        logits = torch.stack([*steps, torch.zeros(draws, words)], 1)[:, None]
        found = likelihood.predict_held(texts(logits), torch.tensor([[0, *text]]))
        each = sum(step.double().log_softmax(-1)[:, word] for step, word in zip(steps, text, strict=True))
        density = torch.as_tensor(each).exp()
        estimate += float(density.mean()) * float(found.information)  # type: ignore[arg-type]
        exact += float((density * (density / density.mean()).log()).mean())
        assert abs(float(found.log_density) - float(density.mean().log())) < 1e-5  # type: ignore[arg-type]
    assert abs(estimate - exact) < 1e-6
    assert exact > 0.1


def test_predictions_of_batches_are_joined() -> None:
    torch.manual_seed(2)
    logits, labels = torch.randn(2, 2, 5, 7), torch.randint(7, (2, 5))
    both = NextToken(7).predict_held(texts(logits), labels)
    short = [
        NextToken(7).predict_held(texts(logits[:, r : r + 1, : 5 - r]), labels[r : r + 1, : 5 - r]) for r in (0, 1)
    ]
    joined: Any = TextPrediction.concatenate(short)  # type: ignore[arg-type]
    assert type(joined) is TextPrediction
    assert joined.tokens.shape == (2, 5, 5)
    assert torch.equal(joined.scored[1], torch.tensor([False, True, True, True, False]))
    torch.testing.assert_close(joined.information[0], both.information[0])  # type: ignore[index]


class Largest(TorchDispatchMode):
    """The most numbers that a tensor has, by its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.sizes[value.dtype] = max(self.sizes.get(value.dtype, 0), value.untyped_storage().nbytes())
        return out


def test_a_vocabulary_of_50000_words_is_never_there_for_all_tokens() -> None:
    words, length, size, draws = 50_000, 50, 2, 2
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = StochasticDown(
        LlamaForCausalLM(config).eval(),
        NextToken(words),
        targets=["q_proj"],
        rank=2,
        num_data=9,
        head=LanguageModelHead(),
    )
    guide = MeanField(model, init_scale=0.1)
    ids = torch.randint(words, (size, length))
    batch, saved = Batch({"input_ids": ids}, ids), [0]

    def pack(value: Tensor) -> Tensor:
        saved[0] += value.numel()
        return value

    with Largest() as training, torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = ELBO(model, guide)(batch)
    loss.backward()
    with Largest() as prediction:
        found = predict(model, guide, batch, num_samples=draws)
    assert size * length * words > AT_ONCE, "all logits of one draw would be more than a chunk has"
    assert saved[0] < size * length * words / 4, "what is kept for the way back holds no logits"
    assert training.sizes[torch.float32] <= 4 * AT_ONCE
    assert prediction.sizes[torch.float32] <= 4 * AT_ONCE
    assert prediction.sizes[torch.float64] <= 8 * AT_ONCE
    assert found.mean.shape == (size, length, 5)
