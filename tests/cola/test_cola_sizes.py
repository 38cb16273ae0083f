"""Numbers of parameters: one linear layer, and the published models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, Swinv2Config, Swinv2Model

from bayes_adapters import Categorical, Tagging, adapted_layers
from bayes_adapters.guides import Hypernetwork
from bayes_adapters.guides.hypernetwork import Phi, _Net, kron_shapes
from bayes_adapters.modalities.inter_path import InterPath
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


@pytest.mark.parametrize("segments", [{}, {"dense": 10, "separate": True}], ids=["whole", "ten seconds"])
def test_parameters_of_the_papers_models(segments: dict[str, Any]) -> None:
    """24 blocks of width 768 and the head of AVE, 1536 → 512 → 29: 18,628,013 in all, as published (18.6 M).

    Ten segments of a clip, each a row of its own, add no number.
    """
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
        likelihood = Tagging(29) if segments else Categorical(29)
        model = CoLA(nets, likelihood, blocks=blocks, head_width=head_width, rank=16, alpha=8, **segments)
        return model, Hypernetwork(model)

    model, guide = build(12, 512)
    null = count(model.null, model.null_descriptor)
    adapters = count(model.backbone) + count(guide)
    assert adapters == 17_826_192
    assert count(model.head) == 801_821
    assert count(model, guide) - null == 18_628_013
    plain = LoRA(nn.ModuleDict({"text": _meta_bert(12)})["text"], Categorical(2), targets="all-linear", rank=16)
    assert count(plain.backbone) == 12 * 221_184


def _by_encoder(model: CoLA, guide: Hypernetwork, name: str) -> int:
    """Parameters that an encoder is adapted with: both paths of its layers, and the hypernetworks of its sites."""
    paths = {path: layer for path, layer in adapted_layers(model.backbone).items() if path.startswith(f"{name}.")}
    nets = [net for key, net in guide.nets.items() if key.startswith(f"cross-{name}-")]
    return count(*paths.values(), *nets)


@pytest.mark.parametrize("dense", [{}, {"dense": 5, "separate": True}, {"dense": "image"}], ids=str)
def test_parameters_of_the_papers_staged_model(dense: dict[str, Any]) -> None:
    """Swin-V2-L (24 blocks, every second one paired) and 12 audio blocks of width 768, as published for AVS.

    A block of width d with plain LoRA has 288 d; 24 blocks: Σ d = 18,048; of the paired ones: 9,024. Hypernetworks of
    the image read audio, 768 → 48; those of the audio read the image's paired blocks, d → 96. The windows within which
    the image's blocks attend, five seconds of a clip, or an output per patch, add no number.
    """
    config = Swinv2Config(
        depths=[2, 2, 18, 2], embed_dim=192, num_heads=[6, 12, 24, 48], window_size=12, image_size=192
    )
    with torch.device("meta"):
        nets = nn.ModuleDict({"image": Swinv2Model(config, add_pooling_layer=False), "audio": _meta_bert()})
    likelihood = Tagging(2) if dense else Categorical(2)
    model = CoLA(nets, likelihood, rank=16, alpha=8, gain=0.1, depths="every-k", **dense)
    guide = Hypernetwork(model, gamma=16, bottleneck={"image": 96})
    assert [own for name, _, own, _ in model.pairs if name == "image"] == list(range(1, 24, 2))
    assert _by_encoder(model, guide, "image") == 288 * (18_048 + 9_024) + 72 + 72 * 50_064 == 11_401_416
    hypernetworks = 6 * (96 * 9_024 + 12 * (96 + 2 * 96 + 96 * 256 + 256 + 2 * 256))
    assert _by_encoder(model, guide, "audio") == 288 * 2 * 12 * 768 + 72 + hypernetworks == 12_351_816
    null = count(model.null, model.null_descriptor)
    assert null == (1536 + 768) + (192 + 384 + 768 + 1536 + 768)
    assert count(model, guide) - null - count(model.head) == 23_753_232


@pytest.mark.parametrize(("rank", "rows"), [(16, 32), (32, 80)])
def test_kron_needs_few_outputs(rank: int, rows: int) -> None:
    (m, p), (n, q) = kron_shapes(rank)
    assert m * n == p * q == rank
    assert m * p + n * q == rows
