"""Text models beside a torchaudio that cannot be loaded.

transformers imports torchaudio wherever it finds it. One that was built for another torch then stops BERT too, though
nothing here needs it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bayes_adapters.backbones._checksums import recall, remember
from bayes_adapters.backbones._resources import cache_folder, say
from bayes_adapters.errors import MissingResourceError

_LOCK = threading.Lock()
_SECONDS = 300.0  # for a process that imports torchaudio, and torch with it
_LOAD = "import sys; sys.path[:] = sys.argv[1:]; import torchaudio"


def settle_torchaudio() -> None:
    """Make transformers do without a torchaudio that is installed and cannot be loaded; call it before loading a model.

    Whether torchaudio loads is found out in a process of its own, so that nothing of it stays in this one. The answer
    is kept in the cache folder for the installed versions of torch and torchaudio: the first call takes some seconds.
    If it does not load, ``transformers.utils.is_torchaudio_available``, which remembers its answer, is asked anew while
    ``sys.modules["torchaudio"]`` is None, which to Python says that there is no such module; the entry is then taken
    away again, so that importing torchaudio gives its own error.

    Raises:
        MissingResourceError: torchaudio cannot be loaded, and this version of transformers does not forget its answer.
    """
    with _LOCK:
        if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
            return
        reason = _why_not()
        if reason is None:
            return
        from transformers.utils import is_torchaudio_available

        sys.modules["torchaudio"] = None  # type: ignore[assignment]
        try:
            if hasattr(is_torchaudio_available, "cache_clear"):
                is_torchaudio_available.cache_clear()  # importing transformers has asked it already
            is_torchaudio_available()
        finally:
            del sys.modules["torchaudio"]
        if is_torchaudio_available():
            raise MissingResourceError(
                f"torchaudio {_version('torchaudio')} cannot be loaded beside torch {_version('torch')} ({reason}), "
                "and transformers, which imports it wherever it is installed, fails with it. Nothing here needs "
                "torchaudio: pip uninstall torchaudio. To keep it, install a pair built for each other, such as: "
                'pip install "torch==2.12.1" "torchaudio==2.11.0"'
            )


@functools.cache
def _why_not() -> str | None:
    """Return None if torchaudio can be loaded, else its error in one line."""
    import torch

    spec = importlib.util.find_spec("torchaudio")
    origin = Path(spec.origin) if spec is not None and spec.origin is not None else None
    changed = origin.stat().st_mtime_ns if origin is not None and origin.is_file() else None
    pair = f"torch {torch.__version__}, torchaudio {_version('torchaudio')}"
    key = json.dumps([pair, sys.version, str(origin), changed])
    memory: Path | None = None
    with contextlib.suppress(MissingResourceError):  # models in a local folder need no cache
        memory = cache_folder()
    known = {} if memory is None else recall(memory, "torchaudio")
    if key in known:
        return known[key]
    answer = _load_elsewhere()
    if memory is not None:
        remember(memory, "torchaudio", key, answer)
    if answer is not None:
        say(f"{pair}: torchaudio cannot be loaded ({answer}); it is not needed, transformers is told to do without")
    return answer


def _load_elsewhere() -> str | None:
    """Import torchaudio in another process; return None or what its error said in the end."""
    try:
        done = subprocess.run(  # noqa: S603  (this interpreter and a fixed program)
            [sys.executable, "-c", _LOAD, *sys.path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())[-300:]
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
    return " ".join(lines[-1].split())[-300:]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"
