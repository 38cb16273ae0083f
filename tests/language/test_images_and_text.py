"""A language model that sees images, through the same heads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from bayes_adapters import ELBO, Batch, Categorical, predict
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.heads import AnswerTokens, LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.models import LoRA, StochasticCore

IMAGE = 39
TARGETS = r".*language_model.*[qv]_proj"


def llava() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=8, patch_size=4, num_hidden_layers=2, **sizes)
    text = LlamaConfig(vocab_size=40, num_hidden_layers=1, pad_token_id=0, **sizes)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    ).eval()


def pictures() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[IMAGE] * 4 + [5, 6, 7, 0], [IMAGE] * 4 + [8, 9, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": torch.randn(2, 3, 8, 8)}


def test_answers_about_images() -> None:
    inputs = pictures()
    model = StochasticCore(llava(), Categorical(3), targets=TARGETS, rank=2, head=AnswerTokens([3, 4, 5]))
    folded, single = (predict(model, MeanField(model), Batch(inputs), num_samples=2, chunk_size=n) for n in (2, 1))
    torch.testing.assert_close(folded.probs, single.probs)
    lora = LoRA(llava(), Categorical(3), targets=TARGETS, head=AnswerTokens([3, 4, 5]))
    own = llava()(**inputs).logits[[0, 1], [6, 5]][:, [3, 4, 5]].softmax(-1)
    torch.testing.assert_close(predict(lora, Delta(lora), Batch(inputs)).probs, own.detach())


def test_texts_about_images_and_no_cache() -> None:
    inputs, cached = pictures(), []
    ids = inputs["input_ids"]
    labels = torch.where((ids != 0) & (ids != IMAGE), ids, -100)
    model = LoRA(llava(), NextToken(40), targets=TARGETS, rank=2, head=LanguageModelHead())
    own = model.backbone(**inputs, labels=labels).loss
    inner: Any = model.backbone.get_submodule("model.language_model")
    inner.register_forward_pre_hook(lambda _, args, given: cached.append(given.get("use_cache")), with_kwargs=True)
    torch.testing.assert_close(ELBO(model, Delta(model))(Batch(inputs, labels)) * 2 / 5, own)
    assert cached == [False]
