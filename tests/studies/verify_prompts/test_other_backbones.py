"""A decoder that reads the scripts, and another encoder that hears the recordings."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bayes_adapters.analysis.records import read_records
from examples.studies.verify_prompts.backbones import _SHOWN, RUNS, rows_of
from examples.studies.verify_prompts.decoded import START, DecodedCorpus
from examples.studies.verify_prompts.experiment import evaluate, train
from examples.studies.verify_prompts.speaker import SpeakerEncoder
from examples.studies.verify_prompts.tables import table
from tests.studies.test_decoder import decoder
from tests.studies.verify_prompts.parts import SETTINGS


class Letters:
    """A tokenizer of words by their first letter."""

    def convert_tokens_to_ids(self, token):
        assert token == START
        return 0

    def __call__(self, text, **_):
        return {"input_ids": [2 + ord(word[0].lower()) % 28 for word in text.split()]}


@pytest.fixture(scope="module")
def decoded(corpus, tmp_path_factory):
    return DecodedCorpus.of(corpus, decoder(), Letters(), 1, tmp_path_factory.mktemp("states"))


def waves():
    torch.manual_seed(0)
    return [0.1 * torch.randn(length) for length in (8000, 3210, 16000)]


def test_scripts_are_the_states_of_their_tokens(decoded):
    batch = decoded.evaluation("test", "hard").batch([0, 1, 2])
    assert set(batch.inputs) == {"inputs_embeds", "attention_mask"}
    net = decoder()
    pair = decoded.evaluation("test", "hard").pairs[1]
    ids = torch.tensor([[0, *Letters()(pair.script_text)["input_ids"]]])
    with torch.no_grad():
        whole = net.model(input_ids=ids).last_hidden_state
        top = decoded.backbone()
        found = top(inputs_embeds=batch.inputs["inputs_embeds"], attention_mask=batch.inputs["attention_mask"])
    torch.testing.assert_close(found.last_hidden_state[1, : ids.shape[1]], whole[0], atol=1e-5, rtol=1e-5)
    assert batch.inputs["attention_mask"].sum(1)[1] == ids.shape[1]


@pytest.mark.parametrize("method", ["lora-text", "caliber-x-fusion"])
def test_methods_train_on_a_decoder(decoded, method):
    settings = replace(SETTINGS, conditions=("clean", "ood-it"))
    trained = train(decoded, method, 0, settings, advance=lambda _: None)
    assert trained.model.pooling == "last"
    assert {path.rsplit(".", 1)[1] for path in trained.model.layers} == {"q_proj", "v_proj"}
    records, _ = evaluate(decoded, trained, settings)
    assert [r.condition for r in records] == ["clean", "ood-it"]
    assert all(0 < r.nll < 5 for r in records)


def test_a_recording_has_frames_of_its_own_alone():
    torch.manual_seed(1)
    encoder = SpeakerEncoder(nn.LSTM(40, 8, 2, batch_first=True))
    together = encoder(waves(), pool=4)
    assert together.mask.sum(1).tolist() == [13, 6, 25]  # 50, 21 and 100 frames of 10 ms, in fours
    for row, wave in enumerate(waves()):
        alone = encoder([wave], pool=4)
        torch.testing.assert_close(together.values[row][together.mask[row]], alone.values[0])
    assert together.values[1, 6:].abs().max() == 0
    fine = encoder(waves()[:1], pool=1).values[0]
    torch.testing.assert_close(fine.mean(-1), torch.zeros(50), atol=1e-5, rtol=0)
    assert torch.allclose(
        fine.unflatten(0, (-1, 2)).mean(1)[:24], encoder(waves()[:1], pool=2).values[0, :24], atol=1e-6
    )
    assert encoder.width == 8
    assert encoder.fingerprint() != SpeakerEncoder(nn.LSTM(40, 8, 2, batch_first=True)).fingerprint()


def test_mel_energies_are_those_of_torchaudio():
    torchaudio = pytest.importorskip("torchaudio")
    own = {"n_fft": 400, "hop_length": 160, "n_mels": 40, "power": 2.0, "pad_mode": "constant"}
    other = torchaudio.transforms.MelSpectrogram(16000, **own, norm="slaney", mel_scale="slaney")
    encoder = SpeakerEncoder(nn.LSTM(40, 8, batch_first=True))
    wave = waves()[0]
    torch.testing.assert_close(encoder.mel(wave), other(wave).T[:50], rtol=1e-3, atol=1e-6)
    quiet = encoder.mel(1e-3 * wave)  # raised to −30 dB: that of a standard deviation of .0316
    torch.testing.assert_close(quiet, other(wave / wave.square().mean().sqrt() * 10**-1.5).T[:50], rtol=1e-3, atol=1e-6)
    assert encoder.mel(torch.zeros(1600)).abs().max() == 0


def test_the_table_has_published_rows_first():
    published = read_records("results/verify_prompts.json")
    measured = [replace(r, method=name) for name in RUNS for r in published if r.method == "caliber-x" and r.seed < 2]
    lines = table(rows_of(published, measured), _SHOWN, "models and method")
    assert len(lines) == 2 + 4 + len(RUNS)
    assert lines[2].startswith("| MiniLM × Whisper: lora-text | 5 |")
    assert lines[-1].startswith("| MiniLM × LSTM: caliber-x-fusion | 2 |")
