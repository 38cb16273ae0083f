"""Bad input: the error says what was given and what to do, and nothing is left changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import (
    ELBO,
    AdapterGuide,
    AdapterModel,
    Batch,
    Bernoulli,
    Categorical,
    Frames,
    Gaussian,
    HeteroscedasticGaussian,
    Targets,
    adapted_layers,
    predict,
)
from bayes_adapters.errors import BayesAdaptersError, ConfigError, DataError, NonFiniteError, TargetError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField, PooledContext
from bayes_adapters.layer import AdaptedLinear
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models import FusionLoRA, LoRA, StochasticCore
from bayes_adapters.reliability import FrameDensity, Reliability
from tests.helpers import CONTEXT, bert, core_model, token_batch, vit

NAN, INF = float("nan"), float("inf")


def state_of(*modules: nn.Module) -> list[Any]:
    """Everything an error must leave alone: structure, modes, flags, values."""
    out: list[Any] = []
    for module in modules:
        out += [(name, type(m), m.training) for name, m in module.named_modules()]
        out += [(name, p.requires_grad, p.detach().clone(), p.grad) for name, p in module.named_parameters()]
    return out


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, old[0]


def check(call: Callable[[], Any], kind: type[BayesAdaptersError], says: list[str], *modules: nn.Module) -> None:
    """``call`` raises ``kind`` in one line that holds every phrase of ``says``; ``modules`` stay as they were."""
    before = state_of(*modules)
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for phrase in says:
        assert phrase in message, f"{phrase!r} is not in: {message}"
    assert_same(before, state_of(*modules))


MODEL_OPTIONS: dict[str, tuple[dict[str, Any], type[BayesAdaptersError], list[str]]] = {
    "unknown target": ({"targets": ["qery"]}, TargetError, ["'qery'", "mean 'query'", "dense, key, query, value"]),
    "no linear layer": ({"targets": ["LayerNorm"]}, TargetError, ["'LayerNorm'", "a LayerNorm", "only torch"]),
    "one of two unknown": ({"targets": ["query", "valu"]}, TargetError, ["'valu'", "'value'"]),
    "no targets": ({"targets": []}, TargetError, ["targets are empty", "['query', 'value']", "all-linear"]),
    "no pattern": ({"targets": "enc["}, TargetError, ["'enc['", "not a regular expression", "pass a list"]),
    "pattern without match": ({"targets": "enc.*qery"}, TargetError, ["'enc.*qery'", "end in"]),
    "absent block": ({"targets": Targets(["query"], layers=[1, 9])}, TargetError, ["block [9]", "[0, 1]"]),
    "all excluded": ({"targets": Targets(["query"], exclude=["query"])}, TargetError, ["excluded by ['query']"]),
    "prior of nothing": (
        {"prior": {"core.*.qery": dist.Normal(0.0, 1.0), "*": dist.Normal(0.0, 1.0)}},
        ConfigError,
        ["'core.*.qery' matches no site", "Sites: core.encoder.layer.0"],
    ),
    "prior of half": ({"prior": {"*query": dist.Normal(0.0, 1.0)}}, ConfigError, ["self.value'", "pattern '*'"]),
    "prior too wide": ({"prior": dist.Normal(torch.zeros(5, 5), 1.0)}, ConfigError, ["(3, 3)", "scalar distribution"]),
    "unknown granularity": ({"granularity": "tokens"}, ConfigError, ["'tokens'", "mean 'token'", "global, sequence"]),
    "global without a size": ({"granularity": "global"}, ConfigError, ["num_data=len(training set)"]),
    "unknown pooling": ({"pooling": "men"}, ConfigError, ["'men'", "mean 'mean'", "cls, last, mean"]),
    "rank 0": ({"rank": 0}, ConfigError, ["rank", "at least 1", "got 0"]),
    "rank -1": ({"rank": -1}, ConfigError, ["rank", "at least 1", "got -1"]),
    "dropout": ({"dropout": 1.0}, ConfigError, ["[0, 1)", "got 1.0"]),
    "alpha": ({"alpha": NAN}, ConfigError, ["alpha", "finite", "got nan"]),
}


@pytest.mark.parametrize("case", MODEL_OPTIONS)
def test_a_model_that_cannot_be_built_leaves_the_backbone_alone(case: str) -> None:
    options, kind, says = MODEL_OPTIONS[case]
    net = bert()
    check(lambda: StochasticCore(net, Bernoulli(), **({"rank": 3} | options)), kind, says, net)


def test_an_error_after_the_adapters_were_installed_takes_them_out() -> None:
    class Headless(LoRA):
        def build_head(self, width: int) -> nn.Module:
            raise ConfigError("no head")

    net = bert()
    check(lambda: Headless(net, Bernoulli()), ConfigError, ["no head"], net)
    model = LoRA(net, Bernoulli())
    check(lambda: Headless(net, Bernoulli()), ConfigError, ["already has adapters", "bayes_adapters.remove"], net)
    assert adapted_layers(model.backbone)


def test_a_backbone_of_unknown_width() -> None:
    net = bert()
    net.config = SimpleNamespace()
    check(lambda: LoRA(net, Bernoulli()), ConfigError, ["BertModel", "hidden_size, d_model or n_embd"], net)


def test_a_fused_model_of_no_width() -> None:
    net = bert()
    check(lambda: FusionLoRA(net, Bernoulli(), context_dim=0), ConfigError, ["context_dim", "got 0"], net)


def test_a_layer_of_another_kind() -> None:
    layer = nn.Conv1d(2, 2, 1)
    check(lambda: AdaptedLinear(layer, 2, 2.0), ConfigError, ["a Conv1d", "torch.nn.Linear"], layer)


C: dict[str, Any] = {"context_dim": CONTEXT}
GUIDE_OPTIONS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "scale": (Contextual, {"scale": "sofplus"}, ["scale 'sofplus'", "mean 'softplus'", "sigmoid_squared"]),
    "scale of pooled": (PooledContext, C | {"scale": "exp"}, ["scale 'exp'", "sigmoid_squared, softplus"]),
    "heads": (CrossAttention, C | {"dim": 8, "heads": 3}, ["heads must divide dim", "heads=3", "dim=8"]),
    "no heads": (CrossAttention, C | {"heads": 0}, ["heads must be at least 1", "got 0"]),
    "width": (Contextual, {"width": 0}, ["width", "at least 1", "got 0"]),
    "context_dim": (CrossAttention, {"context_dim": 0}, ["context_dim", "at least 1", "got 0"]),
    "dim": (PooledContext, C | {"dim": -2}, ["dim", "at least 1", "got -2"]),
    "init_scale": (MeanField, {"init_scale": -0.1}, ["init_scale", "positive", "got -0.1"]),
    "infinite init_scale": (MeanField, {"init_scale": INF}, ["init_scale", "finite", "got inf"]),
}


@pytest.mark.parametrize("case", GUIDE_OPTIONS)
def test_a_guides_options(case: str) -> None:
    guide, options, says = GUIDE_OPTIONS[case]
    model = core_model()
    check(lambda: guide(model, **options), ConfigError, says, model)


@pytest.mark.parametrize(("guide", "options"), [(Contextual, {}), (PooledContext, C), (CrossAttention, C)])
def test_a_guide_that_cannot_serve_the_models_sites(guide: Any, options: dict[str, Any]) -> None:
    model = core_model("global")
    says = [guide.__name__, "'core.global'", "sequence, token", "granularity=", "MeanField and Delta"]
    check(lambda: guide(model, **options), ConfigError, says, model)
    lora = LoRA(bert(), Bernoulli())
    says = [guide.__name__, "nothing to infer", "LoRA", "StochasticCore", "Delta"]
    check(lambda: guide(lora, **options), ConfigError, says, lora)


def test_mean_field_and_delta_on_a_model_without_cores() -> None:
    lora = LoRA(bert(), Bernoulli())
    check(lambda: MeanField(lora), ConfigError, ["MeanField has nothing to infer"], lora)
    assert list(Delta(lora).parameters()) == []


# context

BOTH = pytest.mark.parametrize("kind", [CrossAttention, PooledContext])


def runs(model: AdapterModel, guide: AdapterGuide, batch: Batch) -> list[Callable[[], Any]]:
    """Training and prediction: the same bad input must stop both."""
    return [lambda: ELBO(model, guide)(batch), lambda: predict(model, guide, batch, num_samples=2)]


@BOTH
def test_missing_context(kind: Any) -> None:
    model = core_model()
    guide = kind(model, context_dim=CONTEXT, null_context=False)
    batch = token_batch()
    for run in runs(model, guide, batch.without("audio")):
        check(run, DataError, ["no context 'audio'", "Frames(values, mask)", "null_context=True"], model, guide)
    for run in runs(model, guide, batch):
        check(run, DataError, ["rows [2]", "entirely masked", "null_context=True"], model, guide)


@BOTH
@pytest.mark.parametrize("null_context", [False, True])
def test_context_of_another_width_or_name(kind: Any, null_context: bool) -> None:
    model = core_model()
    guide = kind(model, context_dim=CONTEXT, null_context=null_context)
    batch = token_batch()
    heard = batch.context["audio"].mask
    wide = Batch(batch.inputs, batch.targets, {"audio": Frames(torch.randn(5, 9, CONTEXT + 1), heard)})
    for run in runs(model, guide, wide):
        check(run, DataError, ["'audio' is 7 wide", "context_dim=6", "another encoder"], model, guide)
    named = Batch(batch.inputs, batch.targets, {"audi": batch.context["audio"]})
    for run in runs(model, guide, named):
        check(run, ConfigError, ["'audio'", "['audi']", "Did you mean 'audi'"], model, guide)


def test_context_of_a_fused_model() -> None:
    model = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT + 1)
    guide, batch = Delta(model), token_batch()
    for run in runs(model, guide, batch):
        check(run, DataError, ["'audio' is 6 wide", "context_dim=7"], model, guide)
    frames = Frames(torch.randn(5, 9, CONTEXT + 1), batch.context["audio"].mask)
    named = Batch(batch.inputs, batch.targets, {"audi": frames})
    for run in runs(model, guide, named):
        check(run, ConfigError, ["'audio'", "['audi']", "Did you mean 'audi'"], model, guide)


# batches

IDS, ONES = torch.ones(4, 6, dtype=torch.long), torch.ones(4, 6, dtype=torch.long)
HOLE = torch.tensor([1, 0, 1, 0])[:, None] * ONES
FRAMES = torch.randn(4, 9, 2)
TRUE = torch.ones(4, 9, dtype=torch.bool)
BATCHES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "mask of another length": (
        lambda: Frames(FRAMES, TRUE[:, :5]),
        ["(4, 5)", "(4, 9, 2)", "(B, S) = (4, 9)", "down-sampled"],
    ),
    "mask of other rows": (lambda: Frames(FRAMES, TRUE[:2]), ["(2, 9)", "(B, S) = (4, 9)"]),
    "mask of numbers": (lambda: Frames(FRAMES, TRUE.long()), ["must be bool", "torch.int64"]),
    "pooled context": (lambda: Frames(FRAMES[:, 0], TRUE), ["(B, S, d)", "(4, 2)", "values[:, None]"]),
    "context of integers": (lambda: Frames(FRAMES.long(), TRUE), ["floating point", "torch.int64"]),
    "rows without tokens": (
        lambda: Batch({"input_ids": IDS, "attention_mask": HOLE}),
        ["Rows [1, 3]", "no real token"],
    ),
    "token mask of another length": (
        lambda: Batch({"input_ids": IDS, "attention_mask": ONES[:, :5]}),
        ["(4, 5)", "(4, 6)", "tokenizer"],
    ),
    "no examples": (lambda: Batch({"input_ids": IDS[:0], "attention_mask": ONES[:0]}), ["0 examples", "filter"]),
    "no inputs": (lambda: Batch({}), ["at least one backbone input", "input_ids"]),
    "inputs of two sizes": (
        lambda: Batch({"input_ids": IDS, "attention_mask": ONES[:3]}),
        ["same number of examples", "inputs['input_ids']\": 4", "inputs['attention_mask']\": 3"],
    ),
    "too few targets": (lambda: Batch({"input_ids": IDS}, torch.zeros(3)), ["same number of examples", "'targets': 3"]),
    "too much context": (
        lambda: Batch({"input_ids": IDS[:3]}, None, {"audio": Frames(FRAMES, TRUE)}),
        ["same number of examples", "context['audio']\": 4"],
    ),
    "too few numbers": (lambda: Batch({"input_ids": IDS}, index=torch.arange(3)), ["same number", "'index': 3"]),
    "one number": (lambda: Batch({"input_ids": torch.tensor(3)}), ["inputs['input_ids']", "without dimensions"]),
    "one row": (lambda: Batch({"input_ids": IDS})[2], ["got the int 2", "a slice", "batch[2:3]", "torch.tensor([2])"]),
    "the last row": (
        lambda: Batch({"input_ids": IDS})[-1],
        ["the int -1", "batch[-1:] or batch[torch.tensor([-1])]"],
    ),
    "a row's number in a tensor": (
        lambda: Batch({"input_ids": IDS})[torch.tensor(2)],
        ["of shape ()", "(n,)"],
    ),
    "rows of a table": (lambda: Batch({"input_ids": IDS})[torch.ones(4, 6).bool()], ["shape (4, 6)", "(n,)"]),
    "rows in a list": (lambda: Batch({"input_ids": IDS})[[0, 2]], ["got a list"]),  # type: ignore[index]
    "one row's frames": (lambda: Frames(FRAMES, TRUE)[2], ["got the int 2", "frames[2:3]"]),  # type: ignore[index]
    "loop over rows": (lambda: list(Batch({"input_ids": IDS})), ["got the int 0", "slice"]),  # type: ignore[call-overload]
    "lists": (lambda: Batch({"input_ids": [[1, 2]]}), ["inputs['input_ids']", "a list"]),  # type: ignore[dict-item]
}


UNTYPED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a density for a reliability": (
        lambda: CrossAttention(core_model(), context_dim=CONTEXT, reliability=FrameDensity(CONTEXT, 1)),  # type: ignore
        ["a FrameDensity", "reliability=Reliability(density)"],
    ),
    "yes for a reliability": (
        lambda: PooledContext(core_model(), context_dim=CONTEXT, reliability=True),  # type: ignore
        ["a bool", "reliability=Reliability(density)"],
    ),
    "a config for a density": (
        lambda: Reliability({"context_dim": 3, "components": 1}),  # type: ignore
        ["a dict", "FrameDensity.fit", "Reliability.from_config"],
    ),
}

_PLAIN = """
import json, runpy
answers, cases = {}, runpy.run_path("tests/test_errors.py")
for case, (make, _) in (cases["BATCHES"] | cases["UNTYPED"]).items():
    try:
        answers[case] = ["no error", repr(make())]
    except Exception as error:
        answers[case] = [type(error).__name__, str(error)]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """What each case raises as users run it: the tests' own type checker would stop wrong shapes earlier."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", _PLAIN], cwd=root, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_that_cannot_be(case: str, answers: dict[str, list[str]]) -> None:
    kind, message = answers[case]
    assert kind == "DataError", message
    for phrase in BATCHES[case][1]:
        assert phrase in message


@pytest.mark.parametrize("case", UNTYPED)
def test_an_argument_of_another_type(case: str, answers: dict[str, list[str]]) -> None:
    kind, message = answers[case]
    assert kind == "ConfigError", message
    for phrase in UNTYPED[case][1]:
        assert phrase in message


def test_predicting_nothing() -> None:
    model = core_model()
    check(lambda: predict(model, Delta(model), []), DataError, ["nothing to predict", "exhausted"], model)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_numbers_that_are_none(bad: float) -> None:
    model = core_model()
    guide, batch = CrossAttention(model, context_dim=CONTEXT), token_batch()
    values = batch.context["audio"].values.clone()
    values[3, 1, 0] = bad
    spoilt = Batch(batch.inputs, batch.targets, {"audio": Frames(values, batch.context["audio"].mask)})
    for run in runs(model, guide, spoilt):
        check(run, NonFiniteError, ["context['audio']", "rows [3]", "No weight was changed"], model, guide)
    images = StochasticCore(vit(), Bernoulli(), targets=["q_proj"], rank=2)
    pixels = torch.randn(3, 3, 16, 16)
    pixels[1, 0, 2, 2] = bad
    seen = Contextual(images)
    for run in runs(images, seen, Batch({"pixel_values": pixels}, torch.ones(3))):
        check(run, NonFiniteError, ["inputs['pixel_values']", "rows [1]"], images, seen)


# targets

LABELS: dict[str, tuple[Callable[[], Likelihood], Tensor, list[str]]] = {
    "class too high": (lambda: Categorical(3), torch.tensor([0, 1, 3, 0, 2]), ["0 … 2", "[3]", "rows [2]", "from 1"]),
    "class too low": (lambda: Categorical(3), torch.tensor([0, -100, 2, 0, -1]), ["[-100, -1]", "rows [1, 4]"]),
    "classes as floats": (lambda: Categorical(3), torch.zeros(5), ["int64 of shape (B,)", "torch.float32"]),
    "classes in a column": (lambda: Categorical(3), torch.zeros(5, 1).long(), ["shape (B,)", "(5, 1)"]),
    "labels 1 and 2": (Bernoulli, torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), ["[0, 1]", "[2.0, 2.0]", "1/2"]),
    "labels -1 and 1": (Bernoulli, torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]), ["[0, 1]", "[-1.0]", "-1/1"]),
    "labels as integers": (Bernoulli, torch.tensor([0, 1, 0, 1, 1]), ["floating point", "torch.int64"]),
    "labels nan": (Bernoulli, torch.tensor([0.0, NAN, 0.0, 1.0, 1.0]), ["rows [1]", "NaN", "repair"]),
    "gaussian inf": (Gaussian, torch.tensor([0.0, 1.0, INF, 1.0, 1.0]), ["rows [2]", "infinite"]),
    "gaussian in a column": (Gaussian, torch.zeros(5, 1), ["shape (B,)", "(5, 1)"]),
    "heteroscedastic nan": (HeteroscedasticGaussian, torch.tensor([NAN, 1.0, 1.0, 1.0, 1.0]), ["rows [0]", "NaN"]),
    "heteroscedastic integers": (HeteroscedasticGaussian, torch.arange(5), ["floating point", "torch.int64"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_targets_out_of_range_in_training_and_prediction(case: str) -> None:
    likelihood, targets, says = LABELS[case]
    model = core_model(likelihood=likelihood())
    guide = MeanField(model)
    batch = Batch(token_batch().inputs, targets)
    for run in runs(model, guide, batch):
        check(run, DataError, says, model, guide)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Categorical(1), ["num_classes", "at least 2", "got 1"]),
        (lambda: Gaussian(NAN), ["init_log_scale", "finite", "nan"]),
        (lambda: HeteroscedasticGaussian(-1.0), ["min_scale", "not negative", "-1.0"]),
    ],
)
def test_a_likelihoods_options(make: Callable[[], Any], says: list[str]) -> None:
    check(make, ConfigError, says)


def test_the_elbo_without_targets_and_with_anothers_guide() -> None:
    model, other = core_model(), core_model()
    guide = MeanField(model)
    check(lambda: ELBO(model, guide)(token_batch().without_targets()), ConfigError, ["batch.targets", "predict"], model)
    check(lambda: ELBO(other, guide), ConfigError, ["another model", "Guide(model)"], model, other)
    check(lambda: predict(other, guide, token_batch()), ConfigError, ["another model"], model, other)
    check(lambda: predict(model, guide, token_batch(), num_samples=0), ConfigError, ["at least 1", "got 0"], model)
