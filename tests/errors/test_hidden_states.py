"""Backbones whose hidden states are not what their config says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import ReformerConfig, ReformerModel
from transformers.modeling_outputs import BaseModelOutput

from bayes_adapters import Batch, Bernoulli
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.models import CoLA, ConcatLoRA, FusionLoRA, LoRA, Wander
from tests.helpers import WIDTH, whisper
from tests.refusals import refuses


def reformer() -> nn.Module:
    config = ReformerConfig(
        vocab_size=40,
        hidden_size=WIDTH,
        num_attention_heads=2,
        attention_head_size=8,
        attn_layers=["local"],
        feed_forward_size=24,
        axial_pos_embds=False,
        max_position_embeddings=32,
        local_attn_chunk_length=4,
    )
    return ReformerModel(config).eval()


class Maps(nn.Module):
    """Returns what ``shape`` says, whatever its config says."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.query = shape, nn.Linear(WIDTH, WIDTH)
        self.config = type("Config", (), {"hidden_size": WIDTH})()

    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=torch.zeros(len(input_ids), *self.shape))


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "reformer": reformer,
    "wider": lambda: Maps(8, WIDTH + 1),
    "maps": lambda: Maps(WIDTH, 4, 4),
    "vectors": lambda: Maps(WIDTH),
}
WANDER = {"num_data": 2, "lengths": {"text": 3, "audio": 3}}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("structure", [LoRA, FusionLoRA, ConcatLoRA, Wander])
def test_hidden_states_of_another_width_are_refused(name: str, structure: type[AdapterModel]) -> None:
    backbone, ids = BACKBONES[name](), torch.ones(2, 8, dtype=torch.long)
    inputs = {"text.input_ids": ids, "audio.input_features": torch.zeros(2, 8, 20)}
    if issubclass(structure, ConcatLoRA):
        options = WANDER if structure is Wander else {"targets": ["query"]}
        both = nn.ModuleDict({"text": backbone, "audio": whisper()})
        model: AdapterModel = structure(both, Bernoulli(), **options)
    else:
        inputs = {"input_ids": ids}
        more = {"context_dim": 2} if structure is FusionLoRA else {}
        model = structure(backbone, Bernoulli(), targets=["query"], **more)
    with refuses(ConfigError, type(backbone).__name__, f"(rows, T, {WIDTH})", "config.hidden_size"):
        model(Batch(inputs))


@pytest.mark.parametrize("structure", [ConcatLoRA, CoLA, Wander])
def test_encoders_that_return_something_else_are_refused(structure: type[ConcatLoRA]) -> None:
    text, audio = whisper(), whisper()
    options = WANDER if structure is Wander else {}
    model = structure(nn.ModuleDict({"text": text, "audio": audio}), Bernoulli(), **options)
    features = torch.zeros(2, 8, 20)
    inputs = {"text.input_features": features, "audio.input_features": features}
    text.config.return_dict = False
    with refuses(ConfigError, "WhisperEncoder", "last_hidden_state", "return_dict=True"):
        model(Batch(inputs))
