"""Which layers a specification selects, and how a wrong one is reported."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from bayes_adapters import Targets, select
from bayes_adapters.errors import TargetError
from tests.helpers import bert, gpt2, llama, vit, whisper
from tests.refusals import refuses

SELF = "encoder.layer.{}.attention.self.{}"
TWO = [SELF.format(i, n) for i in range(2) for n in ("query", "value")]


@pytest.mark.parametrize(
    "targets",
    [
        ["query", "value"],
        ("self.query", "self.value"),
        r"encoder\.layer\.\d+\.attention\.self\.(query|value)",
        Targets(["query", "value"]),
        Targets("all-linear", exclude=["key", "dense"]),
        Targets("all-linear", exclude=r".*(key|dense)"),
        Targets(["query", "value", "key"], exclude=["self.key"]),
    ],
    ids=str,
)
def test_the_same_layers_in_seven_ways(targets: Any) -> None:
    assert select(bert(), targets) == TWO


def test_layers_are_counted_as_in_the_path() -> None:
    net = bert(layers=4)
    assert select(net, Targets(["query"], layers=[1, 3])) == [SELF.format(1, "query"), SELF.format(3, "query")]
    assert select(net, Targets(["query"], layers=[0])) == [SELF.format(0, "query")]


def test_all_linear() -> None:
    net = bert()
    expected = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    assert select(net, "all-linear") == expected
    assert len(expected) == 2 * 6 + 1


@pytest.mark.parametrize(
    ("build", "targets", "count"),
    [
        (gpt2, ["c_attn"], 2),  # transformers' Conv1D
        (gpt2, "all-linear", 8),
        (llama, ["q_proj", "v_proj"], 4),
        (whisper, ["q_proj", "v_proj"], 4),
        (vit, "all-linear", 13),
    ],
    ids=["gpt2-conv1d", "gpt2-all", "llama", "whisper", "vit"],
)
def test_other_backbones(build: Any, targets: Any, count: int) -> None:
    assert len(select(build(), targets)) == count


def test_a_suffix_is_a_whole_name() -> None:
    net = nn.ModuleDict({"query": nn.Linear(2, 2), "subquery": nn.Linear(2, 2)})
    assert select(net, ["query"]) == ["query"]


@pytest.mark.parametrize(
    ("targets", "facts"),
    [
        (
            ["qery"],
            ("'qery'", "'query'", "dense, key, query, value"),
        ),
        (["query", "vale"], ("'vale'", "'value'")),
        (["LayerNorm"], ("'LayerNorm'", "a LayerNorm")),
        ("query", ("'query'", "BertModel", ["query"])),
        ("quer(y", ("'quer(y'", ["quer(y"])),
        (Targets(["query"], layers=[7]), ([7], [0, 1])),
        (Targets(["query"], layers=[0, 7]), ([7], [0, 1])),
        (Targets(["query"], exclude=["query"]), (["query"],)),
        (Targets(["query"], exclude=".*query"), (["query"], "'.*query'")),
        (Targets("all-linear", exclude=["poolr"]), ("exclude='poolr'", "'pooler'")),
        (Targets("all-linear", exclude=["pooler"]), ("exclude='pooler'", "'.*pooler.*'")),
        (Targets("all-linear", exclude="pooler"), ("exclude='pooler'", "'.*pooler.*'")),
    ],
    ids=str,
)
def test_errors_name_the_cause(targets: Any, facts: tuple[object, ...]) -> None:
    with refuses(TargetError, *facts):
        select(bert(), targets)


def test_what_a_backbone_does_not_have_is_excluded_from_it() -> None:
    assert select(bert(), Targets("all-linear", exclude=["lm_head"])) == select(bert(), "all-linear")


def test_a_net_without_linear_layers() -> None:
    with refuses(TargetError, "Sequential", "torch.nn.Linear"):
        select(nn.Sequential(nn.ReLU()), "all-linear")
    with refuses(TargetError, "Linear", "torch.nn.Linear"):
        select(nn.Linear(2, 2), "all-linear")


def test_select_changes_nothing() -> None:
    net = bert()
    before = [(n, type(m)) for n, m in net.named_modules()]
    select(net, "all-linear")
    assert [(n, type(m)) for n, m in net.named_modules()] == before
    assert all(p.requires_grad for p in net.parameters())
