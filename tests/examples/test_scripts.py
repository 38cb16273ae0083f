"""The scripts that a user copies run on real texts and recordings, and stay short."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import peft
import pytest
import torch

from bayes_adapters import load
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import TrainingFree
from examples import (
    agent,
    image_and_text,
    peft_to_bayesian,
    pyro_svi,
    sft,
    swap_prior_and_guide,
    text_and_audio,
    text_classification,
    trainer,
)
from examples.studies.training_free import docstrings
from examples.studies.verify_prompts.prompts import load_prompts

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("[!_]*.py"))

pytestmark = [
    pytest.mark.usefixtures("offline"),
    # PEFT reads a property that transformers 5 has renamed.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


def write(path: Path, head: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Short docstrings of two packages, in turn."""
    packages = ("asyncio", "email")
    found = {name: [text for text in docstrings(name) if len(text.split()) < 12][:10] for name in packages}
    rows = [[found[name][i], name] for i in range(10) for name in packages]
    return write(tmp_path / "texts.csv", ["text", "label"], rows)


def call(main, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["script", *map(str, arguments)])
    return main()


def test_text_classification_answers_every_row(texts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    with texts.open("a", encoding="utf-8") as file:
        file.write("Send a mail message to a server.,\n")
    options = ["--epochs", 5, "--system", "lora", "--out", tmp_path / "answers.csv", "--adapter", tmp_path / "adapter"]
    assert call(text_classification.main, monkeypatch, texts, *options) == 0
    assert "held out, 4 texts: accuracy" in capsys.readouterr().out
    with (tmp_path / "answers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    assert list(rows[0]) == ["text", "p(asyncio)", "p(email)", "total", "epistemic"]
    assert all(float(row["p(asyncio)"]) + float(row["p(email)"]) == pytest.approx(1, abs=1e-3) for row in rows)
    right = [float(row[f"p({name})"]) for row, name in zip(rows, ["asyncio", "email"] * 10, strict=False)]
    assert sum(right) / 20 > 0.5
    model, _ = load(tmp_path / "adapter", text_backbone()[0])
    assert model.likelihood.num_outputs == 2


def test_the_trainer_keeps_its_best_epoch(texts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    options = ["--epochs", 1, "--system", "lora", "--folder", tmp_path / "run"]
    assert call(trainer.main, monkeypatch, texts, *options) == 0
    assert "held out, 4 texts: accuracy" in capsys.readouterr().out
    model, _ = load(tmp_path / "run" / "adapter", text_backbone()[0])
    assert model.likelihood.num_outputs == 2
    assert not [path for path in (tmp_path / "run").rglob("*.safetensors") if path.stat().st_size > 2**21]


def test_text_and_audio_is_less_sure_without_the_recordings(tmp_path: Path, monkeypatch, capsys) -> None:
    prompts = [p for p in load_prompts(("en",)) if 0.8 < p.seconds < 1.6][:10]
    rows = []
    for i, prompt in enumerate(prompts):
        rows += [[prompt.text, str(prompt.path), "1"], [prompts[i - 1].text, str(prompt.path), "0"]]
    data = write(tmp_path / "pairs.csv", ["text", "audio", "label"], rows)
    assert call(text_and_audio.main, monkeypatch, data, "--epochs", 2) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.endswith(tuple(p.text[:60] for p in prompts))]) == 4
    assert "mean total uncertainty" in out


def test_swap_prior_and_guide_prints_every_pair(capsys) -> None:
    epistemic = swap_prior_and_guide.main(epochs=2)
    out = capsys.readouterr().out
    assert all(title in out for title, *_ in swap_prior_and_guide.PAIRS)
    point = [bool((part == 0).all()) for part in epistemic]
    assert point == [False, False, True, False], "a point estimate alone has no epistemic part"


def test_pyro_svi_learns(capsys) -> None:
    losses, draws = pyro_svi.main(steps=12)
    assert losses[-1] < losses[0]
    assert draws.shape == (20, 3)
    assert bool((draws.std(0) > 0).all())
    assert "after 12 steps" in capsys.readouterr().out


def test_peft_to_bayesian_keeps_the_adapter(texts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    torch.manual_seed(0)
    lora = peft.get_peft_model(
        text_backbone()[0], peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    )
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # as if trained
    lora.save_pretrained(tmp_path / "peft")
    options = ["--epochs", 3, "--out", tmp_path / "bayesian", "--tolerance", "0.05"]
    assert call(peft_to_bayesian.main, monkeypatch, tmp_path / "peft", texts, *options) == 0
    out = capsys.readouterr().out
    assert out.index("as trained: accuracy") < out.index("with noise: accuracy")
    model, guide = load(tmp_path / "bayesian", text_backbone()[0])
    assert isinstance(guide, TrainingFree)
    path = "encoder.layer.0.attention.self.query"
    theirs = lora.base_model.model.get_submodule(path)
    (site,) = model.sites
    mean = guide.state_dict()["mean-A-global"][site.layers.index(path)]
    ours = model.backbone.get_submodule(path).lora_B.detach() @ mean
    product = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
    torch.testing.assert_close(ours, product.detach(), atol=1e-5, rtol=1e-4)


def test_image_and_text_asks_about_every_noise(capsys) -> None:
    image_and_text.main(epochs=1, count=32)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("noise ")]
    assert [line.split(":")[0] for line in lines] == ["noise 0.0", "noise 0.2", "noise 0.5", "noise 1.0", "noise None"]
    assert all(0.0 <= float(line.split()[-2]) <= 0.7 for line in lines)


def test_sft_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    """Prompts and completions of letters; then the same folder, two steps further."""
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = [tmp_path / "pairs.jsonl", "--folder", tmp_path / "run", "--tiny", "--steps"]
    assert call(sft.main, monkeypatch, *options, 2) == 0
    assert (tmp_path / "run" / "checkpoint-2" / "adapter").exists()
    assert call(sft.main, monkeypatch, *options, 4, "--resume") == 0
    out = capsys.readouterr().out
    assert out.count("held out, 2 texts: perplexity") == 2
    assert out.count("nats of epistemic uncertainty") == 4
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert not [path for path in (tmp_path / "run").rglob("*.safetensors") if path.stat().st_size > 2**16]


def test_the_agent_hands_over_what_it_does_not_know(monkeypatch, capsys) -> None:
    """A model of random weights is wrong, and its guard lets it answer no more than the risk allows."""
    assert call(agent.main, monkeypatch, "--tiny", "--steps", 2, "--questions", 40) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if " handed over, " in line]
    assert [line.split(":")[0] for line in lines] == ["lora by total", "blob by total", "blob by epistemic"]
    assert all("1.000 wrong without a guard" in line for line in lines)
    assert all(float(line.split(" handed")[0].split()[-1]) >= 0.7 for line in lines)
    assert agent.calculator("What is 37 + 48? Answer:") == "85"
    assert "by the tool" in out
