"""Whatever a folder holds, ``show`` ends with an answer or one line."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.parts import Run, check_refusal
from tests.files.parts import edit_json

JUNK: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, "", "x", "\x1b]0;owned\x07", "a\nb", "\ud800", "\u202e", [], [[]], {}, {"a": 1},
    "float32[99999999999]", "float32[-1]", "float33[1]", ["x"] * 3, [1, "x"], {"family": 3}, "9" * 400,
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: its container and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


def check_answer(answer: tuple[int, str, str]) -> None:
    code, out, err = answer
    if code:
        check_refusal(answer)
    else:
        assert err == ""
    assert all(c.isprintable() or c == "\n" for c in out + err), (out, err)


def test_no_altered_description_ends_in_a_traceback(home: Path, run: Run, tmp_path: Path) -> None:
    """57 of 782 did, with names of files printed as they are."""
    folder = tmp_path / "adapter"
    shutil.copytree(home / "adapter", folder)
    original = json.loads((folder / "adapter.json").read_text())
    rng = random.Random(0)
    count = sum(1 for _ in places(original))
    codes = []
    for number in range(500):
        about = copy.deepcopy(original)
        container, key = list(places(about))[rng.randrange(count)]
        if number % 5:
            container[key] = rng.choice(JUNK)
        else:
            del container[key]

        def change(into: dict[str, Any], about: dict[str, Any] = about) -> None:
            into.clear()
            into.update(about)

        (folder / "adapter.json").write_text(json.dumps(original))
        if "checksum" in about and number % 3:
            del about["checksum"]  # older files have none
        edit_json(folder, change)
        answer = run("show", folder)
        check_answer(answer)
        codes.append(answer[0])
    assert codes.count(0) > 50, "some alterations are harmless, so that more than the checksum is tried"
    assert codes.count(2) > 100


def test_no_altered_bytes_end_in_a_traceback(home: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(home / "adapter", folder)
    rng = random.Random(1)
    for number in range(200):
        name = ("adapter.json", "adapter.safetensors")[number % 2]
        data = bytearray((home / "adapter" / name).read_bytes())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if not number % 4:
            del data[rng.randrange(len(data)) :]
        (folder / name).write_bytes(data)
        answer = run("show", folder)
        check_answer(answer)
        unchanged = data == (home / "adapter" / name).read_bytes()
        assert unchanged or answer[0] == 2 or number % 2 == 0, "altered weights were not noticed"
        shutil.copy(home / "adapter" / name, folder / name)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


ODD: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "64 GiB of nothing": sparse,
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
}


@pytest.mark.parametrize("part", ["adapter.json", "adapter.safetensors"])
@pytest.mark.parametrize("kind", ODD)
def test_parts_that_are_no_files(kind: str, part: str, home: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(home / "adapter", folder)
    (folder / part).unlink()
    ODD[kind](folder / part)
    check_refusal(run("show", folder), part)
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", folder), part)


def test_a_link_to_a_file_is_a_file(home: Path, run: Run, tmp_path: Path) -> None:
    for name in ("adapter.json", "adapter.safetensors"):
        (tmp_path / name).symlink_to(home / "adapter" / name)
    assert run("show", tmp_path)[0] == 0


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\udcff", "x/" * 3000])
def test_names_that_no_folder_can_have(name: str, run: Run) -> None:
    check_refusal(run("show", name))


def test_what_a_terminal_would_act_on_is_escaped(home: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(home / "adapter", tmp_path / "a")
    escape = "\x1b]0;owned\x07\u202e\nfingerprint  0000"

    def change(about: dict[str, Any]) -> None:
        about["base"]["name_or_path"] = escape
        about["versions"][escape] = escape
        about["model"]["config"]["targets"][0] = escape
        about["model"]["config"][escape] = escape

    edit_json(tmp_path / "a", change)
    answer = run("show", tmp_path / "a")
    assert answer[0] == 0
    check_answer(answer)
    assert answer[1].count("\nfingerprint") == 1
    assert r"\x1b]0;owned\x07\u202e\n" in answer[1]
    edit_json(tmp_path / "a", lambda about: about.update(format_version=escape))
    check_answer(run("show", tmp_path / "a"))
    check_answer(run("show", tmp_path / escape))
