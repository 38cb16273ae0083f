"""The examples of a task, below the encoders' upper blocks, made once and kept in a file: runs differ above only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bayes_adapters.backbones._resources import install_once
from examples.av_events.digits import Written
from examples.av_events.nets import Nets
from examples.av_events.recordings import Recordings
from examples.av_events.task import Examples, Settings, Task, parts

_FILE = "examples.safetensors"
_FIELDS = ("vision", "audio", "targets")


def kept(
    task: Task, recordings: Recordings, written: Written, nets: Nets, settings: Settings, root: Path
) -> dict[str, Examples]:
    """Return :func:`examples.av_events.task.parts`, from a folder of ``root`` if they lie there, which is made if not.

    Its name is a digest of recordings, pictures, both encoders and settings.

    Args:
        task: which.
        recordings: what is said.
        written: what is shown.
        nets: both encoders.
        settings: see there.
        root: a folder, such as that of the runs.
    """
    folder = root / f"{task}-{_digest(recordings, written, nets, settings)}"
    if not folder.is_dir():
        with install_once(root, folder.name) as work:
            made = parts(task, recordings, written, nets, settings)
            tensors = {f"{name}.{field}": getattr(own, field) for name, own in made.items() for field in _FIELDS}
            speakers = {name: json.dumps(own.speakers) for name, own in made.items()}
            save_file({key: value.clone() for key, value in tensors.items()}, work / _FILE, metadata=speakers)
    with safe_open(folder / _FILE, framework="pt") as file:
        said = {name: tuple(json.loads(text)) for name, text in file.metadata().items()}
        own = {name: {field: file.get_tensor(f"{name}.{field}") for field in _FIELDS} for name in said}
    return {name: Examples(task, **own[name], speakers=speakers) for name, speakers in said.items()}


def _digest(recordings: Recordings, written: Written, nets: Nets, settings: Settings) -> str:
    found = hashlib.sha256(repr((settings, recordings.digits, recordings.speakers)).encode())
    for wave in recordings.waves:
        found.update(wave.contiguous().numpy().tobytes())
    found.update(nets.speech.fingerprint().encode())
    found.update(_bytes(nets.vision) + written.ink.tobytes() + written.digits.tobytes())
    return found.hexdigest()[:16]


def _bytes(net: nn.Module) -> bytes:
    return b"".join(value.detach().float().contiguous().numpy().tobytes() for value in net.state_dict().values())
