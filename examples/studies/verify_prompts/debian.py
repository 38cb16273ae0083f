"""Fetching and unpacking Debian packages into a folder, without root and without installing them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bayes_adapters.backbones._resources import say
from bayes_adapters.errors import MissingResourceError


def unpack_packages(names: Sequence[str], target: Path, seconds: float = 300.0) -> None:
    """Download Debian packages with apt and unpack them into ``target``.

    The machine's package lists are used if they know the packages; otherwise lists are fetched into a private folder.

    Args:
        names: package names.
        target: an existing folder; the packages' ``usr/…`` appears below it.
        seconds: time limit of each command.

    Raises:
        MissingResourceError: apt-get or dpkg-deb is missing, or the packages cannot be reached.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingResourceError(
                f"{tool} was not found; the prompts ({', '.join(names)}) are Debian packages. Run this on "
                f"Debian or a relative of it, or unpack the packages (dpkg-deb -x) on another machine into "
                f"{target.parent}."
            )
    with tempfile.TemporaryDirectory(prefix="bayes-adapters-apt-") as folder:
        work = Path(folder)
        (work / "cache" / "archives" / "partial").mkdir(parents=True)
        (work / "lists" / "partial").mkdir(parents=True)
        options = {
            "APT::Sandbox::User": "root",  # nobody else may write into the private folder
            "Dir::Cache": str(work / "cache"),
            "Acquire::Retries": "1",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
        }
        first = _apt(["download", *names], options, work, seconds)
        if first is not None:
            say("apt's lists do not offer the prompts; fetching lists into a private folder")
            options["Dir::State::Lists"] = str(work / "lists")
            second = _apt(["update"], options, work, seconds) or _apt(["download", *names], options, work, seconds)
            if second is not None:
                raise MissingResourceError(
                    f"apt-get could not download {', '.join(names)}: {second} Connect to a Debian mirror, or "
                    f"unpack the packages (dpkg-deb -x) on another machine and copy the folder into {target.parent}."
                )
        for package in sorted(work.glob("*.deb")):
            done = subprocess.run(
                ["dpkg-deb", "-x", str(package), str(target)],
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
            if done.returncode != 0:
                raise MissingResourceError(
                    f"{package.name} could not be unpacked into {target}: {done.stderr.strip()[-300:]} "
                    "Is the disk full?"
                )


def _apt(arguments: Sequence[str], options: dict[str, str], folder: Path, seconds: float) -> str | None:
    """Run apt-get in ``folder``; return None on success, else the end of what it said."""
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    try:
        done = subprocess.run(
            ["apt-get", "-q", *flags, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}."
    return None if done.returncode == 0 else f"{(done.stderr or done.stdout).strip()[-400:]}."
