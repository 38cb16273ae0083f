"""The ELBO against a loss written without the library: own BERT, own adapters, own attention, own KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters import ELBO, Batch, adapted_layers
from bayes_adapters.models import StochasticCore
from tests.helpers import GUIDES, WIDTH, core_model, token_batch

Posterior = Callable[[str, Tensor], tuple[Tensor, Tensor]]


def hand_loss(model: StochasticCore, batch: Batch, posterior: Posterior, weight: float) -> Tensor:
    net, mask = model.backbone, batch.inputs["attention_mask"].bool()
    rows, length = mask.shape
    kl = torch.zeros(rows)

    def adapted(path: str, x: Tensor) -> Tensor:
        nonlocal kl
        layer = adapted_layers(net)[path]
        z = x @ layer.lora_A.T
        mu, sigma = posterior(path, z)
        core = mu + sigma * torch.normal(torch.zeros(mu.shape), torch.ones(mu.shape))
        each = torch.log(0.2 / sigma) + (sigma**2 + mu**2) / (2 * 0.2**2) - 0.5
        kl = kl + (each.sum((-1, -2)) * mask).sum(-1)
        base = layer.base_layer
        return (
            x @ base.weight.T + base.bias + 16.0 / model.rank * torch.einsum("oi,btij,btj->bto", layer.lora_B, core, z)
        )

    emb = net.embeddings
    x = emb.word_embeddings.weight[batch.inputs["input_ids"]] + emb.token_type_embeddings.weight[0]
    x = emb.LayerNorm(x + emb.position_embeddings.weight[:length])
    for i, block in enumerate(net.encoder.layer):
        path, heads = f"encoder.layer.{i}.attention.self", 2
        q = adapted(f"{path}.query", x)
        k = block.attention.self.key(x)
        v = adapted(f"{path}.value", x)
        q, k, v = (t.view(rows, length, heads, -1).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.mT / math.sqrt(WIDTH // heads)).masked_fill(~mask[:, None, None], -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, WIDTH)
        x = block.attention.output.LayerNorm(block.attention.output.dense(mixed) + x)
        x = block.output.LayerNorm(block.output.dense(F.gelu(block.intermediate.dense(x))) + x)
    pooled = torch.stack([x[b, mask[b]].mean(0) for b in range(rows)])
    logit = (pooled @ model.head.weight.T + model.head.bias)[:, 0]
    y = batch.targets
    nll = -(y * F.logsigmoid(logit) + (1 - y) * F.logsigmoid(-logit))
    return nll.mean() + weight * kl.mean()


def _head(head: nn.Module, u: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    first, second = head.net[0], head.net[2]
    out = torch.relu(u @ first.weight.T + first.bias) @ second.weight.T + second.bias
    mu, g = out[..., : rank * rank], out[..., rank * rank :]
    shape = (*u.shape[:-1], rank, rank)
    return mu.reshape(shape), (torch.sigmoid(g) ** 2).reshape(shape)


def _posterior(name: str, model: StochasticCore, guide: Any, batch: Batch) -> Posterior:
    frames = batch.context["audio"]

    def contextual(path: str, z: Tensor) -> tuple[Tensor, Tensor]:
        return _head(guide.heads[f"core.{path}".replace(".", "-")], z, model.rank)

    def cross(path: str, z: Tensor) -> tuple[Tensor, Tensor]:
        key = f"core.{path}".replace(".", "-")
        kv = "shared" if guide.share_kv else key
        query, out = z @ guide.reader.query[key].weight.T, []
        width = guide.dim // guide.num_heads
        for b in range(batch.size):
            real = frames.values[b, frames.mask[b]]
            k = torch.cat([real @ guide.reader.key[kv].weight.T, guide.reader.null[kv][:1]])
            v = torch.cat([real @ guide.reader.value[kv].weight.T, guide.reader.null[kv][1:]])
            pieces = []
            for h in range(guide.num_heads):
                part = slice(h * width, (h + 1) * width)
                pieces.append((query[b][:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1) @ v[:, part])
            out.append(torch.cat(pieces, -1))
        return _head(guide.heads[key], torch.cat([z, torch.stack(out)], -1), model.rank)

    def pooled(path: str, z: Tensor) -> tuple[Tensor, Tensor]:
        key = f"core.{path}".replace(".", "-")
        rows = []
        for b in range(batch.size):
            real = frames.values[b, frames.mask[b]]
            rows.append(real.mean(0) @ guide.reader.value[key].weight.T if len(real) else guide.reader.null[key])
        context = torch.stack(rows)[:, None].expand(*z.shape[:-1], guide.dim)
        return _head(guide.heads[key], torch.cat([z, context], -1), model.rank)

    def mean_field(path: str, z: Tensor) -> tuple[Tensor, Tensor]:
        key = f"core.{path}".replace(".", "-")
        shape = (*z.shape[:-1], model.rank, model.rank)
        return guide.loc[key].expand(shape), guide.rho[key].exp().expand(shape)

    return {"contextual": contextual, "pooled_context": pooled, "mean_field": mean_field}.get(name, cross)


@pytest.mark.parametrize("name", ["contextual", "cross_attention", "shared_kv", "pooled_context", "mean_field"])
def test_equals_a_hand_written_loss_in_value_and_every_gradient(name: str) -> None:
    model = core_model("token")
    guide = GUIDES[name](model)
    with torch.no_grad():
        for parameter in getattr(guide, "null", {}).values():
            parameter.normal_()
    batch = token_batch()
    parameters = model.trainable_parameters() | dict(guide.named_parameters())
    torch.manual_seed(5)
    loss = ELBO(model, guide, kl_weight=0.3)(batch)
    ours = torch.autograd.grad(loss, list(parameters.values()))
    torch.manual_seed(5)
    hand = hand_loss(model, batch, _posterior(name, model, guide, batch), 0.3)
    theirs = torch.autograd.grad(hand, list(parameters.values()))
    torch.testing.assert_close(loss, hand, rtol=2e-6, atol=1e-6)
    for key, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=2e-5 * float(b.abs().max()) + 1e-7, msg=lambda m, key=key: f"{key}: {m}"
        )
        assert b.abs().max() > 0, key
