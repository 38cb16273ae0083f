"""Self-supervised pre-training: hide seconds of a signal, and rebuild them from the others.

Encoders see the training people only, one encoder a fold and modality, and lie in the cache as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bayes_adapters.backbones import cache_folder
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError
from examples.studies.body_signals.data import Fold, Signals
from examples.studies.body_signals.encoders import EncoderSettings, SignalEncoder, build_encoder


@dataclass(frozen=True)
class PretrainSettings:
    """How an encoder is pre-trained.

    Args:
        encoder: sizes of the transformer.
        epochs, batch_size, lr: AdamW with a linear warm-up over a tenth of the steps and linear decay.
        hidden: share of the seconds that are hidden, between 0 and 1.
        span: hidden seconds come in runs of this length: one second of a slow signal is read off its neighbours.
    """

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    hidden: float = 0.5
    span: int = 5


class Reconstruction(nn.Module):
    """``loss = mean over hidden seconds of |x - (W h + b)|²`` with ``h`` the encoder's output where x was hidden.

    Args:
        encoder: trained in place; the hidden seconds' embeddings are replaced by one learned vector.
    """

    def __init__(self, encoder: SignalEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.blank = nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, encoder.patch_size)

    def forward(self, signal: Float[Tensor, "B S C"], hidden: Bool[Tensor, "B P"]) -> Float[Tensor, ""]:
        """Return the loss of a batch, in squared standard deviations of the person; ``hidden`` is True where hidden."""
        patches = self.encoder.patches(signal)
        embedded = torch.where(hidden[..., None], self.blank, self.encoder.patch(patches))
        rebuilt = self.head(self.encoder.embedded(embedded).last_hidden_state)
        return (rebuilt - patches)[hidden].square().mean()


def hide(rows: int, seconds: int, settings: PretrainSettings, generator: torch.Generator) -> Bool[Tensor, "B P"]:
    """Draw which seconds to hide, shape (rows, seconds): runs of ``span``, the same number in every row."""
    runs = -(-seconds // settings.span)
    count = min(max(1, round(settings.hidden * runs)), runs - 1)
    order = torch.rand(rows, runs, generator=generator).argsort(-1)
    return (order < count).repeat_interleave(settings.span, -1)[:, :seconds]


def pretrain(encoder: SignalEncoder, values: Tensor, settings: PretrainSettings, seed: int) -> list[float]:
    """Train ``encoder`` in place and return each epoch's mean loss.

    Args:
        encoder: new.
        values: standardised samples of the training people, shape (N, S, channels).
        settings: see there.
        seed: of the order, the hidden seconds and the reconstruction head.

    Raises:
        ConfigError: nothing, or everything, would be hidden.
        NonFiniteError: the loss is NaN or infinite.
    """
    if not 0 < settings.hidden < 1 or min(settings.span, settings.epochs, settings.batch_size) < 1:
        raise ConfigError(
            f"hidden must lie between 0 and 1; span, epochs and batch_size must be at least 1; got {settings}."
        )
    seconds = values.shape[1] // encoder.modality.rate
    if settings.span >= seconds:
        raise ConfigError(f"Runs of {settings.span} hidden seconds leave nothing of {seconds}; shorten span.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Reconstruction(encoder)
    source = torch.Generator().manual_seed(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.01)
    steps = settings.epochs * -(-len(values) // settings.batch_size)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.02, (steps - step) / max(1, steps - warm)))
    )
    losses: list[float] = []
    model.train()
    for epoch in range(settings.epochs):
        total = 0.0
        for rows in torch.randperm(len(values), generator=source).split(settings.batch_size):
            loss = model(values[rows], hide(len(rows), seconds, settings, source))
            if not bool(loss.isfinite()):
                raise NonFiniteError(
                    f"The reconstruction loss is {loss.item()} in epoch {epoch}. Are the signals standardised? A lower "
                    "lr helps when they are."
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        losses.append(total / len(values))
    encoder.eval().requires_grad_(False)
    return losses


def pretrained(
    signals: Signals, fold: Fold, settings: PretrainSettings, root: Path | None = None
) -> dict[str, SignalEncoder]:
    """Return the frozen encoders of a fold, from the cache or trained now on its training people.

    Args:
        signals: standardised windows of everybody; only the training people's are read.
        fold: its ``seed`` is also the seed of initialisation and order.
        settings: see there.
        root: where the encoders lie; ``body_signals/encoders`` in the cache folder when not given.
    """
    root = cache_folder() / "body_signals" / "encoders" if root is None else root
    train = signals.of(fold.train)
    return {name: _one(name, train.values[name], fold.seed, settings, root) for name in signals.values}


def _one(name: str, values: Tensor, seed: int, settings: PretrainSettings, root: Path) -> SignalEncoder:
    own = _seed(name, seed)
    encoder = build_encoder(name, settings.encoder, own)
    about = {"modality": name, "seed": seed, "settings": asdict(settings), "data": _digest(values)}
    path = root / f"{name}-{seed}-{_digest(json.dumps(about, sort_keys=True))[:16]}.safetensors"
    if path.is_file():
        _read(encoder, path)
    else:
        losses = pretrain(encoder, values, settings, own)
        _write(encoder, path, {"about": json.dumps(about), "losses": json.dumps(losses)})
    return encoder.eval().requires_grad_(False)


def _seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{name}/{seed}".encode()).digest()[:6], "big")


def _digest(value: Tensor | str) -> str:
    raw = value.encode() if isinstance(value, str) else value.contiguous().numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def _write(encoder: SignalEncoder, path: Path, metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in encoder.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as work:
        part = Path(work) / path.name
        part.write_bytes(save(tensors, metadata=dict(metadata)))  # save_file's are for their owner alone
        os.replace(part, path)  # another process may have written the same: it is the same


def _read(encoder: SignalEncoder, path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            encoder.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (SafetensorError, RuntimeError, OSError) as error:
        raise DataError(f"{path} holds no encoder of these sizes: {error}. Delete it to train it again.") from error


def losses_of(path: Path) -> list[float]:
    """Return the losses of pre-training that are kept in an encoder's file."""
    with safe_open(path, framework="pt") as file:
        return list(json.loads(file.metadata()["losses"]))
