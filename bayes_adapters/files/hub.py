"""Saved adapters on the Hugging Face hub: a repository holds what ``save`` writes, and a model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from bayes_adapters.files._adapter import Fitted, load, save
from bayes_adapters.files._card import card
from bayes_adapters.files._folder import DESCRIPTION, WEIGHTS, verified
from bayes_adapters.files._hub_checks import hub_answers, require_adapter, require_online, require_source
from bayes_adapters.files._pair_densities import FittedPairs
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel

CARD = "README.md"


def push_to_hub(
    source: str | Path | AdapterModel,
    repo_id: str,
    *,
    guide: AdapterGuide | None = None,
    task: Mapping[str, Any] | None = None,
    calibration: Sequence[Fitted] = (),
    pair_densities: Mapping[str, FittedPairs] = MappingProxyType({}),
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload adapter",
    token: str | None = None,
) -> str:
    """Upload a saved adapter, in one commit, to a model repository, which is made when absent.

    A model card with the facts of the adapter (base model, structure, posterior, likelihood, versions) goes along if
    the repository has none; a ``README.md`` in the folder goes instead.

    Args:
        source: a folder of :func:`bayes_adapters.save`, or a model, which is then saved first.
        repo_id: such as ``"user/my-adapter"``.
        guide: the guide made for the model; needed for a model, and for nothing else.
        task: as for :func:`bayes_adapters.save`; for a model only.
        calibration: the same.
        pair_densities: the same.
        private: whether a new repository is private.
        revision: the branch; None is the main one.
        message: of the commit.
        token: of the hub; None is that of the hub's own login.

    Returns:
        The address of the commit.

    Raises:
        AdapterFileError: the folder holds no intact adapter.
        ConfigError: a model without its guide, a folder with one, or no name for a repository.
        MissingResourceError: the hub is set to offline, does not answer, or refuses.
    """
    require_source(source, AdapterModel, guide, task, calibration, pair_densities)
    require_online("push_to_hub", repo_id)
    if isinstance(source, AdapterModel) and guide is not None:
        with tempfile.TemporaryDirectory(prefix="bayes-adapters-") as folder:
            save(folder, source, guide, task=task, calibration=calibration, pair_densities=pair_densities)
            return _push(Path(folder), repo_id, private, revision, message, token)
    return _push(Path(str(source)), repo_id, private, revision, message, token)


def _push(folder: Path, repo_id: str, private: bool, revision: str | None, message: str, token: str | None) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    about = verified(folder)
    files: dict[str, str | bytes] = {
        DESCRIPTION: (json.dumps(about, indent=1) + "\n").encode(),  # of an interrupted save, the one that counts
        WEIGHTS: str(folder / WEIGHTS),
    }
    with hub_answers("uploaded", repo_id, revision):
        api = HfApi(token=token, library_name="bayes-adapters", library_version=about["versions"]["bayes-adapters"])
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if (folder / CARD).is_file():
            files[CARD] = (folder / CARD).read_bytes()
        elif not api.file_exists(name, CARD, revision=revision):
            files[CARD] = card(about, name).encode()
        parts = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in files.items()]
        return str(api.create_commit(name, parts, commit_message=message, revision=revision).commit_url)


def download(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Fetch an adapter's two files, or find them in the hub's local cache; return their folder.

    Args:
        repo_id: of the repository.
        revision: a branch, tag or commit; None is the newest of the main branch.
        token: of the hub, for private repositories; None is that of the hub's own login.

    Returns:
        A folder for :func:`bayes_adapters.load`, ``load_task`` and ``files.describe``; do not write to it.

    Raises:
        AdapterFileError: the repository holds no adapter of this library.
        ConfigError: no name for a repository.
        MissingResourceError: neither the hub nor its cache has it.
    """
    from huggingface_hub import snapshot_download

    with hub_answers("downloaded", repo_id, revision):
        files = [DESCRIPTION, WEIGHTS]
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=files, token=token))
    require_adapter(repo_id, folder / DESCRIPTION)
    return folder


def load_from_hub(
    repo_id: str, backbone: nn.Module, *, revision: str | None = None, token: str | None = None
) -> tuple[AdapterModel, AdapterGuide]:
    """Build an adapter of the hub on ``backbone``: :func:`bayes_adapters.load` of what :func:`download` found.

    Nothing of a repository is run or unpickled: it is JSON and safetensors, checked as any folder is.

    Args:
        repo_id: of the repository.
        backbone: the same frozen backbone, without adapters.
        revision: a branch, tag or commit; name a commit for the same adapter tomorrow.
        token: of the hub, for private repositories.

    Returns:
        ``(model, guide)`` in eval mode.

    Raises:
        AdapterFileError: the repository holds no adapter, or one for another backbone.
        ConfigError: the backbone has adapters; no name for a repository.
        MissingResourceError: neither the hub nor its cache has it.
    """
    return load(download(repo_id, revision=revision, token=token), backbone)
