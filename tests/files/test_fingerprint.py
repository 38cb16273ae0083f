"""A backbone's fingerprint: whatever it computes with, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel

from bayes_adapters import Bernoulli, fingerprint, load, remove, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._backbone import old_fingerprint
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.files.parts import edit_json, scramble
from tests.helpers import bert, gpt2, vit, whisper
from tests.refusals import refuses


@pytest.mark.parametrize("backbone", [bert, gpt2, vit, whisper])
def test_fingerprint_ignores_adapters_and_nothing_else(backbone: Callable[[], nn.Module]) -> None:
    net = backbone()
    before = fingerprint(net)
    model = LoRA(net, Bernoulli(), targets="all-linear", rank=2)
    scramble(model, Delta(model))
    assert fingerprint(net) == before
    assert fingerprint(remove(net)) == before
    for name, p in net.named_parameters():
        with torch.no_grad():
            place = p.numel() // 2 + 1 if p.numel() > 2 else 0  # no multiple of a stride
            old = p.view(-1)[place].clone()
            p.view(-1)[place] = old + 1
            assert fingerprint(net) != before, name
            p.view(-1)[place] = old
    assert fingerprint(net) == before


def test_one_weight_among_many_is_noticed() -> None:
    """It was noticed 0 of 60 times: at most 1,024 values of a tensor were looked at."""
    net = nn.Linear(300, 300)
    before = fingerprint(net)
    for place in torch.randint(0, 90_000, (60,), generator=torch.Generator().manual_seed(0)).tolist():
        old = float(net.weight.data.view(-1)[place])
        net.weight.data.view(-1)[place] = 1e4
        assert fingerprint(net) != before, place
        net.weight.data.view(-1)[place] = old
    assert fingerprint(net) == before


def with_config(**options: Any) -> nn.Module:
    """The usual weights under another configuration."""
    config = copy.deepcopy(bert().config)
    for name, value in options.items():
        setattr(config, name, value)
    net = BertModel(config).eval()
    net.load_state_dict(bert().state_dict())
    return net


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 4},
        {"hidden_act": "relu"},
        {"layer_norm_eps": 1e-2},
        {"is_decoder": True},
    ],
)
def test_another_computation_on_the_same_weights(change: dict[str, Any], tmp_path: Path) -> None:
    assert fingerprint(with_config(**change)) != fingerprint(bert())
    model = LoRA(bert(), Bernoulli())
    save(tmp_path, model, Delta(model))
    ((key, value),) = change.items()
    with refuses(
        AdapterFileError,
        str(tmp_path),
        f"config.{key}",
        f"{getattr(bert().config, key)!r} saved",
        f"{value!r} given",
        "BertModel",
    ):
        load(tmp_path, with_config(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_dropout_prob": 0.3},
        {"id2label": {0: "no", 1: "yes", 2: "perhaps"}},
        {"_name_or_path": "elsewhere"},
        {"use_cache": False},
        {"pad_token_id": 3},
    ],
)
def test_what_changes_no_number(change: dict[str, Any]) -> None:
    assert fingerprint(with_config(**change)) == fingerprint(bert())


def relu(net: nn.Module) -> None:
    net.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()  # type: ignore[index, union-attr]


def epsilon(net: nn.Module) -> None:
    net.encoder.layer[1].output.LayerNorm.eps = 1e-2  # type: ignore[index, union-attr]


@pytest.mark.parametrize("change", [relu, epsilon])
def test_a_layer_that_was_changed_after_it_was_built(change: Callable[[nn.Module], None], tmp_path: Path) -> None:
    model = LoRA(bert(), Bernoulli(), targets="all-linear")
    assert fingerprint(model.backbone) == fingerprint(bert())
    save(tmp_path, model, Delta(model))
    net = bert()
    change(net)
    assert fingerprint(net) != fingerprint(bert())
    with refuses(AdapterFileError, str(tmp_path), "options", "BertModel"):
        load(tmp_path, net)
    load(tmp_path, bert().train())
    edit_json(tmp_path, lambda about: about["versions"].update(transformers="5.0.0"))
    load(tmp_path, net)  # another version may have other layers for the same numbers


def test_heads_of_a_net_without_a_configuration() -> None:
    def net(heads: int, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(8, heads, 12, **options)

    assert fingerprint(net(2)) == fingerprint(net(2, dropout=0.3))
    for other in (net(4), net(2, norm_first=True), net(2, activation=nn.functional.gelu), net(2, layer_norm_eps=0.1)):
        assert fingerprint(other) != fingerprint(net(2))


def test_an_entry_of_another_version_of_transformers_is_no_difference(tmp_path: Path) -> None:
    model = LoRA(bert(), Bernoulli())
    save(tmp_path, model, Delta(model))

    def rename(about: dict[str, Any]) -> None:
        fields = about["base"]["config"]
        fields["renamed_since"] = fields.pop("type_vocab_size")

    edit_json(tmp_path, rename)
    load(tmp_path, bert())


def test_persistent_buffers_count_and_others_do_not() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net.register_buffer("scratch", torch.zeros(2), persistent=False)
    before = fingerprint(net)
    net.scratch.add_(1)  # type: ignore[operator]
    assert fingerprint(net) == before
    net[1].running_mean.add_(0.1)  # type: ignore[operator, union-attr]
    assert fingerprint(net) != before


def test_tied_weights_count_under_both_names() -> None:
    tied, loose = (nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}) for _ in range(2))
    tied["b"].weight = tied["a"].weight
    loose.load_state_dict(tied.state_dict())
    assert fingerprint(tied) == fingerprint(loose)
    loose["b"].weight.data[0, 0] += 1
    assert fingerprint(tied) != fingerprint(loose)


def test_fingerprint_of_a_backbone_without_values() -> None:
    with torch.device("meta"):
        net = bert()
    with refuses(ConfigError, "'embeddings.LayerNorm.bias'", "meta"):
        fingerprint(net)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_every_dtype_has_bytes(dtype: torch.dtype) -> None:
    net = nn.Linear(3, 3).to(dtype)
    before = fingerprint(net)
    net.weight.data.view(torch.uint8)[-1, -1] ^= 1
    assert fingerprint(net) != before


class Packed(Tensor):
    """A tensor of parts, as quantised ones are: torch's own protocol gives them."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Packed:
        found = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined]
        found.codes, found.scale = codes, scale
        return found

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "detach" in str(func):
            return args[0]
        raise NotImplementedError(str(func))


class Closed(Packed):
    """A quantised tensor that does not say what it consists of."""

    __tensor_flatten__ = None  # type: ignore[assignment]


def test_quantised_tensors_count_by_their_parts() -> None:
    def net(kind: type[Packed], scale: float) -> nn.Module:
        module = nn.Module()
        parts = kind(torch.ones(2, 2, dtype=torch.int8), torch.tensor(scale))
        module.weight = nn.Parameter(parts, requires_grad=False)
        return module

    assert fingerprint(net(Packed, 1.0)) == fingerprint(net(Packed, 1.0)) != fingerprint(net(Packed, 1.5))
    with refuses(ConfigError, "'weight'", "Closed", "full_tensor()", "__tensor_flatten__()"):
        fingerprint(net(Closed, 1.0))


def test_an_older_file_is_compared_as_it_was(tmp_path: Path) -> None:
    model = LoRA(bert(), Bernoulli())
    save(tmp_path, model, Delta(model))

    def older(about: dict[str, Any]) -> None:
        about["base"] = {k: v for k, v in about["base"].items() if k not in ("tensors", "config", "layers")}
        about["base"]["fingerprint"] = old_fingerprint(bert())
        about.pop("frozen", None)

    edit_json(tmp_path, older)
    loaded, _ = load(tmp_path, bert())
    assert torch.equal(loaded.head.weight, model.head.weight)
    with refuses(AdapterFileError, str(tmp_path), "names, shapes or values", "BertModel"):
        load(tmp_path, bert(seed=1))
