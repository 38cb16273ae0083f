"""Saved adapters come back bit for bit, and whatever is wrong with one is said before anything changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bayes_adapters
from bayes_adapters import (
    AdapterGuide,
    AdapterModel,
    Batch,
    Bernoulli,
    Categorical,
    Gaussian,
    HeteroscedasticGaussian,
    adapted_layers,
    fingerprint,
    load,
    load_task,
    predict,
    remove,
    save,
)
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files import describe
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField, PooledContext
from bayes_adapters.models import FusionLoRA, LoRA, StochasticCore
from bayes_adapters.priors import identity_normal
from bayes_adapters.reliability import FrameDensity, Reliability
from bayes_adapters.targets import Targets
from tests.helpers import CONTEXT, bert, gpt2, token_batch, vit, whisper

Pair = tuple[AdapterModel, AdapterGuide]


def scramble(model: AdapterModel, guide: AdapterGuide, seed: int = 1) -> Pair:
    """Give every trained tensor a random value: nothing stays at zero or at its start."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in [*model.trainable_parameters().values(), *guide.parameters()]:
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return model, guide


def pair(
    backbone: nn.Module | None = None, granularity: str = "token", guide: Any = Contextual, **options: Any
) -> Pair:
    model = StochasticCore(
        bert() if backbone is None else backbone,
        options.pop("likelihood", None) or Bernoulli(),
        granularity=granularity,
        rank=3,
        num_data=50,
        prior=options.pop("prior", None),
        targets=options.pop("targets", ("query", "value")),
    )
    return scramble(model, guide(model, **options))


def state(backbone: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in backbone.state_dict().items()}


def check_round_trip(saved: Pair, fresh: nn.Module, batch: Batch, folder: Path) -> Pair:
    """Save, load on a fresh backbone, compare predictions bit for bit; the random state must stay untouched."""
    model, guide = saved
    model.eval(), guide.eval()
    save(folder, model, guide)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, guide_again = load(folder, fresh)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is type(model)
    assert type(guide_again) is type(guide)
    assert again.config() == model.config()
    assert guide_again.config() == guide.config()
    first, second = (predict(m, g, batch, num_samples=3, return_samples=True) for m, g in (saved, (again, guide_again)))
    for name in ("mean", "total", "aleatoric", "epistemic", "samples", "variance"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None and b is None) or torch.equal(a, b), name
    assert again.prior.to_json() == model.prior.to_json()
    for site in model.sites:
        assert type(again.prior.of(site)) is type(model.prior.of(site))
        assert torch.equal(again.prior.of(site).mean, model.prior.of(site).mean.float())
    trained = {"model." + k: v for k, v in model.trainable_parameters().items()}
    assert trained.keys() <= load_file(folder / "adapter.safetensors").keys()
    return again, guide_again


GUIDES: list[tuple[Any, dict[str, Any]]] = [
    (Delta, {}),
    (MeanField, {"init_scale": 0.2}),
    (Contextual, {"width": 5, "scale": "softplus"}),
    (PooledContext, {"context_dim": CONTEXT, "dim": 4}),
    (CrossAttention, {"context_dim": CONTEXT, "dim": 4, "heads": 2}),
    (CrossAttention, {"context_dim": CONTEXT, "dim": 4, "share_kv": True, "null_context": True}),
]


@pytest.mark.parametrize(
    ("guide", "options", "granularity"),
    [(g, o, k) for g, o in GUIDES for k in ("global", "sequence", "token") if k in {s.value for s in g.serves}],
)
def test_every_guide_and_granularity(guide: Any, options: dict[str, Any], granularity: str, tmp_path: Path) -> None:
    check_round_trip(pair(None, granularity, guide, **options), bert(), token_batch().without_targets(), tmp_path / "a")


@pytest.mark.parametrize("guide", [PooledContext, CrossAttention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frame_density_comes_back_with_its_prior(guide: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """Where frames are far from those of training, predictions depend on the density's buffers and on the prior."""
    frames = token_batch().context["audio"]
    density = FrameDensity.fit([torch.randn(60, CONTEXT), torch.randn(60, CONTEXT) - 1], [frames] * 10)
    density.limit.mul_(0.3)
    reliability = Reliability(density, "prior", 0.4)
    model, guide = pair(guide=guide, context_dim=CONTEXT, reliability=reliability, prior=dist.Normal(0.3, 0.7))
    assert (density(frames)[frames.present] < 0.99).all()
    model.to(dtype)
    check_round_trip((model, guide), bert().to(dtype), token_batch().without_targets(), tmp_path)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(3), Gaussian(0.5), HeteroscedasticGaussian(0.01)])
def test_every_likelihood(likelihood: nn.Module, tmp_path: Path) -> None:
    again, _ = check_round_trip(pair(likelihood=likelihood), bert(), token_batch().without_targets(), tmp_path)
    assert type(again.likelihood) is type(likelihood)
    assert again.likelihood.config() == likelihood.config()  # type: ignore[operator]


def by_name(name: str, shape: tuple[int, ...]) -> Any:
    loc = torch.eye(shape[-1]) if "layer.0" in name else torch.zeros(shape[-1], shape[-1])
    return dist.Normal(loc, 0.1 + loc)


@pytest.mark.parametrize(
    "prior",
    [
        None,
        dist.Normal(0.1, 0.3),
        dist.Laplace(0.0, 0.2),
        dist.Uniform(-1.0, 0.5),
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        identity_normal(3, 0.1),
        {"*query": dist.Normal(0.0, 1.0), "*": dist.StudentT(5.0, 0.0, 0.2)},
        by_name,
    ],
)
@pytest.mark.parametrize("granularity", ["global", "token"])
def test_every_way_to_give_a_prior(prior: Any, granularity: str, tmp_path: Path) -> None:
    if isinstance(prior, dict) and granularity == "global":
        prior = {"core.global": dist.StudentT(5.0, 0.0, 0.2)}
    check_round_trip(pair(None, granularity, Delta, prior=prior), bert(), token_batch().without_targets(), tmp_path)


def images() -> Batch:
    return Batch({"pixel_values": torch.randn(3, 3, 16, 16)})


def mels() -> Batch:
    return Batch({"input_features": torch.randn(3, 8, 20)})


@pytest.mark.parametrize(
    ("backbone", "targets", "batch"),
    [
        (bert, "all-linear", lambda: token_batch().without_targets()),
        (gpt2, ["c_attn"], lambda: token_batch().without_targets()),
        (vit, ["q_proj", "fc1"], images),
        (whisper, ["q_proj", "v_proj"], mels),
    ],
)
@pytest.mark.parametrize(("granularity", "guide"), [("global", MeanField), ("token", Contextual)])
def test_every_backbone(
    backbone: Callable[[], nn.Module],
    targets: Any,
    batch: Callable[[], Batch],
    granularity: str,
    guide: Any,
    tmp_path: Path,
) -> None:
    if targets == "all-linear" and granularity == "token":
        targets = Targets("all-linear", exclude=["pooler.dense"])  # it sees one vector, not tokens
    check_round_trip(pair(backbone(), granularity, guide, targets=targets), backbone(), batch(), tmp_path)


@pytest.mark.parametrize("structure", [LoRA, FusionLoRA])
def test_models_without_cores(structure: Any, tmp_path: Path) -> None:
    options = {"context_dim": CONTEXT, "fusion_width": 7} if structure is FusionLoRA else {}
    model = structure(bert(), Categorical(2), rank=2, alpha=3.0, dropout=0.1, pooling="cls", **options)
    check_round_trip(scramble(model, Delta(model)), bert(), token_batch().without_targets(), tmp_path)


def test_a_path_that_is_the_end_of_another_is_not_mistaken_for_it(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.config = bert().config
            self.inner = bert()
            self.proj = nn.Linear(16, 16)
            self.inner.proj = nn.Linear(16, 16)

        def forward(self, **inputs: Tensor) -> Any:
            out = self.inner(**inputs)
            out.last_hidden_state = self.proj(out.last_hidden_state)
            return out

    again, _ = check_round_trip(pair(Nested(), targets="proj"), Nested(), token_batch().without_targets(), tmp_path)
    assert again.layers == ["proj"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    """Adapters keep the dtype they have, whether the backbone alone or the whole model was cast."""
    model, guide = pair(bert().to(dtype))
    check_round_trip((model, guide), bert().to(dtype), token_batch().without_targets(), tmp_path / "base")
    whole, guide = pair(None, "sequence", Contextual)
    whole.to(dtype)
    again, _ = check_round_trip((whole, guide), bert().to(dtype), token_batch().without_targets(), tmp_path / "whole")
    assert again.head.weight.dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_saved_on_a_gpu_loads_on_the_cpu(tmp_path: Path) -> None:
    model, guide = pair(bert().cuda())
    guide.cuda()
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert {p.device.type for p in [*again.parameters(), *guide_again.parameters()]} == {"cpu"}
    for name, p in guide.named_parameters():
        assert torch.equal(p.cpu(), dict(guide_again.named_parameters())[name])


def test_persistent_buffers_are_saved_and_non_persistent_ones_are_not(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide)
    names = load_file(tmp_path / "adapter.safetensors").keys()
    assert not any("base_layer" in n or "prior" in n or "embeddings" in n for n in names)
    guide.register_buffer("count", torch.tensor(3))
    model.likelihood.register_buffer("seen", torch.tensor([1.5]))
    save(tmp_path, model, guide)
    assert {"guide.count", "model.likelihood.seen"} <= load_file(tmp_path / "adapter.safetensors").keys()
    with pytest.raises(AdapterFileError, match="seen is surplus"):
        load(tmp_path, bert())


def test_task_and_description(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide, task={"task": "demo", "thresholds": {"q90": 0.25}})
    assert load_task(tmp_path) == {"task": "demo", "thresholds": {"q90": 0.25}}
    about = describe(tmp_path)
    assert about["num_data"] == 50
    assert about["base"]["class"] == "BertModel"
    assert about["versions"].keys() == {"python", "bayes-adapters", "torch", "pyro-ppl", "transformers"}
    assert about["weights"]["sha256"] == hashlib.sha256((tmp_path / "adapter.safetensors").read_bytes()).hexdigest()
    save(tmp_path, model, guide)
    with pytest.raises(AdapterFileError, match="without a task"):
        load_task(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]


@pytest.mark.parametrize("backbone", [bert, gpt2, vit, whisper])
def test_fingerprint_ignores_adapters_and_nothing_else(backbone: Callable[[], nn.Module]) -> None:
    net = backbone()
    before = fingerprint(net)
    model = LoRA(net, Bernoulli(), targets="all-linear", rank=2)
    scramble(model, Delta(model))
    assert fingerprint(net) == before
    assert fingerprint(remove(net)) == before
    for name, p in net.named_parameters():
        if p.numel() <= 1024:
            with torch.no_grad():
                old = p.view(-1)[-1].clone()
                p.view(-1)[-1] = old + 1
                assert fingerprint(net) != before, name
                p.view(-1)[-1] = old
    assert fingerprint(net) == before


def test_fingerprint_of_a_backbone_without_values() -> None:
    with torch.device("meta"):
        net = bert()
    with pytest.raises(ConfigError, match="meta device"):
        fingerprint(net)


# what save refuses


def test_save_refuses_what_it_could_not_load_again(tmp_path: Path) -> None:
    class Mine(Contextual):
        pass

    class Twin(Contextual):
        name = "contextual"

    model, guide = pair()
    with pytest.raises(ConfigError, match="another model"):
        save(tmp_path / "a", pair()[0], guide)
    with pytest.raises(ConfigError, match="inherits its name 'contextual'"):
        save(tmp_path / "a", model, Mine(model))
    with pytest.raises(ConfigError, match="another class"):
        save(tmp_path / "a", model, Twin(model))
    with pytest.raises(ConfigError, match=r"task cannot be written as JSON.*set"):
        save(tmp_path / "a", model, guide, task={"x": {1, 2}})
    with pytest.raises(ConfigError, match="finite numbers"):
        save(tmp_path / "a", model, guide, task={"x": float("nan")})
    next(p for n, p in model.backbone.named_parameters() if "LayerNorm" in n).requires_grad_(True)
    with pytest.raises(ConfigError, match=r"1 weights of the backbone are trainable.*LayerNorm"):
        save(tmp_path / "a", model, guide)
    assert not (tmp_path / "a").exists()


def test_save_overwrites_adapters_and_spares_everything_else(tmp_path: Path) -> None:
    model, guide = pair()
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterFileError, match="is a file"):
        save(tmp_path / "file", model, guide)
    for name, text in (("thesis.tex", "x"), ("adapter.json", '{"someone": "else"}')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(AdapterFileError, match="not empty"):
            save(folder, model, guide)
        assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, text)]
    folder = tmp_path / "old"
    save(folder, model, guide)
    (folder / "notes.txt").write_text("keep me")
    scramble(model, guide, seed=9)
    save(folder, model, guide)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors", "notes.txt"]
    check = load(folder, bert())[0]
    assert torch.equal(check.head.weight, model.head.weight)


def test_a_failed_write_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = pair()
    save(tmp_path, model, guide)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    scramble(model, guide, seed=9)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayes_adapters._folder.os.fsync", full)
    with pytest.raises(AdapterFileError, match=r"No space left.*disk full"):
        save(tmp_path, model, guide)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# what load refuses


def edit_json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads((folder / "adapter.json").read_text())
    change(about)
    (folder / "adapter.json").write_text(json.dumps(about))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any], consistent: bool) -> None:
    """Change tensors and repair the checksum; ``consistent`` repairs the list of tensors too."""
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)

    def repair(about: dict[str, Any]) -> None:
        about["weights"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        if consistent:
            kinds = {n: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for n, t in tensors.items()}
            about["weights"]["tensors"] = kinds

    edit_json(folder, repair)


def cut(folder: Path, keep: int, repair: bool = False) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    if repair:
        edit_json(folder, lambda a: a["weights"].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


def flip(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


HEAD = "model.head.weight"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), "does not exist"),
    "no json": (lambda f: (f / "adapter.json").unlink(), r"adapter.json' does not exist"),
    "not json": (lambda f: (f / "adapter.json").write_text("{"), "is not JSON"),
    "binary json": (lambda f: (f / "adapter.json").write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "a list": (lambda f: (f / "adapter.json").write_text("[]"), "describes no adapter"),
    "another program's": (lambda f: (f / "adapter.json").write_text('{"peft_type": "LORA"}'), "describes no adapter"),
    "newer": (lambda f: edit_json(f, lambda a: a.update(format_version=2)), "format version 2.*update"),
    "odd version": (lambda f: edit_json(f, lambda a: a.update(format_version="x")), "format version 'x'"),
    "no guide": (lambda f: edit_json(f, lambda a: a.pop("guide")), "misstates guide, guide.name, guide.config"),
    "no base print": (lambda f: edit_json(f, lambda a: a["base"].pop("fingerprint")), "misstates base.fingerprint"),
    "no tensors": (lambda f: (f / "adapter.safetensors").unlink(), "cannot be read.*whole folder"),
    "truncated": (lambda f: cut(f, 500), r"\(500 bytes\).*checksum differs"),
    "one bit": (flip, "checksum differs"),
    "truncated, checksum repaired": (lambda f: cut(f, 500, repair=True), "is not a safetensors file"),
    "emptied, checksum repaired": (lambda f: cut(f, 0, repair=True), "is not a safetensors file"),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(HEAD), False), f"{HEAD} is missing"),
    "surplus tensor": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.ones(1)), False), "x is surplus"),
    "mis-shaped tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: torch.ones(2, 16)}), False),
        r"head.weight is float32\[2, 16\] where float32\[1, 16\] is described",
    ),
    "wrong dtype": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: t[HEAD].half()}), False),
        r"head.weight is float16\[1, 16\] where float32\[1, 16\] is described",
    ),
    "missing, consistently": (lambda f: edit_tensors(f, lambda t: t.pop(HEAD), True), f"{HEAD} is missing"),
    "surplus, consistently": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.ones(1)), True), "x is surplus"),
    "mis-shaped, consistently": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: torch.ones(2, 16)}), True),
        r"float32\[1, 16\] is needed",
    ),
    "integers, consistently": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: t[HEAD].int()}), True),
        r"int32\[1, 16\] where float32\[1, 16\] is needed",
    ),
    "unknown guide": (lambda f: edit_json(f, lambda a: a["guide"].update(name="contextal")), "mean 'contextual'"),
    "unknown model": (lambda f: edit_json(f, lambda a: a["model"].update(structure="my")), "Unknown model 'my'"),
    "unknown option": (lambda f: edit_json(f, lambda a: a["guide"]["config"].update(depth=3)), "depth"),
    "unknown prior": (
        lambda f: edit_json(f, lambda a: next(iter(a["prior"].values())).update(family="Nrmal")),
        "cannot be built again.*Nrmal",
    ),
    "unknown layer": (lambda f: edit_json(f, lambda a: a["model"]["config"].update(targets=["x.y"])), "matches 'x"),
    "fewer layers": (lambda f: edit_json(f, lambda a: a["model"]["config"]["targets"].pop()), "cannot be built again"),
}


@pytest.mark.parametrize("case", BAD)
def test_load_lists_what_is_wrong_and_leaves_the_backbone_alone(case: str, tmp_path: Path) -> None:
    spoil, message = BAD[case]
    save(tmp_path / "a", *pair())
    spoil(tmp_path / "a")
    net = bert()
    net.train()
    net.encoder.eval()
    next(net.parameters()).requires_grad_(False)
    before = state(net)
    modes = [(n, m.training, type(m)) for n, m in net.named_modules()]
    flags = [p.requires_grad for p in net.parameters()]
    with pytest.raises(AdapterFileError, match=message) as caught:
        load(tmp_path / "a", net)
    assert "\n" not in str(caught.value)
    assert not adapted_layers(net)
    assert state(net).keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in state(net).items())
    assert [(n, m.training, type(m)) for n, m in net.named_modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags


def test_load_refuses_another_backbone(tmp_path: Path) -> None:
    save(tmp_path, *pair())
    for other, message in (
        (bert(seed=1), "values do not"),
        (gpt2(), "class 'BertModel' saved, 'GPT2Model' given"),
        (bert(layers=3), "parameters .* saved"),
        (bert().bfloat16(), "dtype 'float32' saved, 'bfloat16' given"),
    ):
        with pytest.raises(AdapterFileError, match=f"another backbone: .*{message}.*BertModel"):
            load(tmp_path, other)
        assert not adapted_layers(other)


def test_load_refuses_a_backbone_with_adapters_and_keeps_them(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide)
    layers = list(adapted_layers(model.backbone).values())
    with pytest.raises(ConfigError, match="already has adapters"):
        load(tmp_path, model.backbone)
    assert list(adapted_layers(model.backbone).values()) == layers
    again, _ = load(tmp_path, remove(model.backbone))
    assert again.backbone is model.backbone


def test_exported_at_the_top() -> None:
    assert bayes_adapters.save is save
    assert bayes_adapters.load is load
