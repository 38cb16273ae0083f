"""Numbers of parameters: one linear layer, and the published models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from bayes_adapters import Categorical
from bayes_adapters.guides import Hypernetwork
from bayes_adapters.guides.hypernetwork import Phi, _Net, kron_shapes
from bayes_adapters.inter_path import InterPath
from bayes_adapters.models import CoLA, LoRA
from bayes_adapters.sites import Granularity, Part, Site


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values())


def _meta_bert(layers: int = 12) -> nn.Module:
    config = BertConfig(vocab_size=10, hidden_size=768, num_hidden_layers=layers, intermediate_size=3072)
    with torch.device("meta"):
        return BertModel(config, add_pooling_layer=False)


def test_parameters_of_one_linear() -> None:
    layer = nn.Linear(768, 768)
    site = Site("cross.l", Part.CROSS, ("l",), (16, 16), Granularity.SEQUENCE, "other")
    path = InterPath(site, nn.Parameter(torch.zeros(16, 768)), nn.Parameter(torch.zeros(768, 16)), 0.5, "slot")
    lora = 16 * 768 * 2
    net = _Net(768, 48, 16, Phi.DENSE, None)
    assert count(net) == 50_064
    assert count(path, net) + lora == 99_217
    assert not count(layer.requires_grad_(False))


def test_parameters_of_the_papers_models() -> None:
    """24 blocks of width 768 and the head of AVE, 1536 → 512 → 29: 18,628,013 in all, as published (18.6 M)."""
    small = {"text": _meta_bert(1), "audio": _meta_bert(1)}  # blocks are looked at by running them: not on meta
    names = "encoder.layer.{i}."
    roles = {
        "path": names[:-1],
        "query": names + "attention.self.query",
        "key": names + "attention.self.key",
        "value": names + "attention.self.value",
        "output": names + "attention.output.dense",
        "fc1": names + "intermediate.dense",
        "fc2": names + "output.dense",
        "residual": names + "intermediate.dense",
    }

    def build(layers: int, head_width: int | None) -> tuple[CoLA, Hypernetwork]:
        nets = nn.ModuleDict({name: _meta_bert(layers) for name in small})
        blocks = {name: [{k: v.format(i=i) for k, v in roles.items()} for i in range(layers)] for name in small}
        model = CoLA(nets, Categorical(29), blocks=blocks, head_width=head_width, rank=16, alpha=8)
        return model, Hypernetwork(model)

    model, guide = build(12, 512)
    null = count(model.null, model.null_descriptor)
    adapters = count(model.backbone) + count(guide)
    assert adapters == 17_826_192
    assert count(model.head) == 801_821
    assert count(model, guide) - null == 18_628_013
    plain = LoRA(nn.ModuleDict({"text": _meta_bert(12)})["text"], Categorical(2), targets="all-linear", rank=16)
    assert count(plain.backbone) == 12 * 221_184


@pytest.mark.parametrize(("rank", "rows"), [(16, 32), (32, 80)])
def test_kron_needs_few_outputs(rank: int, rows: int) -> None:
    (m, p), (n, q) = kron_shapes(rank)
    assert m * n == p * q == rank
    assert m * p + n * q == rows
