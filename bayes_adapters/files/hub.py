"""Saved adapters on the Hugging Face hub: a repository holds what ``save`` writes, and a model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn

from bayes_adapters.files._adapter import Fitted, load, save
from bayes_adapters.files._card import card
from bayes_adapters.files._file_checks import unwritable
from bayes_adapters.files._folder import DESCRIPTION, WEIGHTS, verified
from bayes_adapters.files._hub_checks import (
    hub_answers,
    is_offline,
    require_adapter,
    require_no_revision,
    require_online,
    require_source,
)
from bayes_adapters.files._pair_densities import FittedPairs
from bayes_adapters.files._regular import as_folder
from bayes_adapters.files._whole_file import replace_file
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel

CARD = "README.md"
_Pair = TypeVar("_Pair", bound="HubMixin")


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
    folder: str | Path | None = None,
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
        folder: where the same files are written, too, of a ``source`` that is a model. With ``HF_HUB_OFFLINE=1`` they
            are written there and nowhere else: ``push_to_hub(folder, repo_id)`` uploads them later.

    Returns:
        The address of the commit; offline, that of the folder.

    Raises:
        AdapterFileError: the folder holds no intact adapter.
        ConfigError: a model without its guide, a folder with one, or no name for a repository.
        MissingResourceError: the hub is set to offline and there is no ``folder``, or it does not answer, or refuses.
    """
    require_source(source, AdapterModel, guide, task, calibration, pair_densities, folder)
    if isinstance(source, AdapterModel) and guide is not None and folder is not None:
        about: dict[str, Any] = {"task": task, "calibration": calibration, "pair_densities": pair_densities}
        written = save_pretrained(folder, source, guide, repo_id=repo_id, **about)
        return str(written) if is_offline() else _push(written, repo_id, private, revision, message, token)
    require_online("push_to_hub", repo_id)
    if isinstance(source, AdapterModel) and guide is not None:
        with tempfile.TemporaryDirectory(prefix="bayes-adapters-") as temporary:
            save(temporary, source, guide, task=task, calibration=calibration, pair_densities=pair_densities)
            return _push(Path(temporary), repo_id, private, revision, message, token)
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


def save_pretrained(
    directory: str | Path, model: AdapterModel, guide: AdapterGuide, *, repo_id: str | None = None, **options: Any
) -> Path:
    """Write what :func:`push_to_hub` would upload: a saved adapter and its model card. Nothing leaves the machine.

    Args:
        directory: as for :func:`bayes_adapters.save`; a ``README.md`` that is there stays as it is.
        model: any.
        guide: made for it.
        repo_id: where it will be, for the card; None takes the folder's name.
        **options: ``task``, ``calibration`` and ``pair_densities`` of :func:`bayes_adapters.save`.

    Returns:
        The folder, for :func:`from_pretrained`, ``push_to_hub`` and :func:`bayes_adapters.load`.

    Raises:
        AdapterFileError, ConfigError: as :func:`bayes_adapters.save`.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.systems import build
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model, guide = build("blob", BertModel(tiny), Bernoulli(), num_data=10, rank=2)
    >>> folder = save_pretrained(tempfile.mkdtemp(), model, guide, repo_id="me/mood")
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'adapter.json', 'adapter.safetensors']
    """
    folder = as_folder(directory)
    save(folder, model, guide, **options)
    if not (folder / CARD).is_file():
        try:
            replace_file(folder / CARD, card(verified(folder), repo_id or folder.resolve().name).encode())
        except OSError as error:
            raise unwritable(folder, error) from error
    return folder


def from_pretrained(
    source: str | Path, backbone: nn.Module, *, revision: str | None = None, token: str | None = None
) -> tuple[AdapterModel, AdapterGuide]:
    """Build an adapter on ``backbone``: of a folder if there is one of that name, else of a repository of the hub.

    Args:
        source: a folder of :func:`save_pretrained` or ``save``, or the name of a repository.
        backbone: the same frozen backbone, without adapters.
        revision: as for :func:`load_from_hub`; for a repository only.
        token: the same.

    Returns:
        ``(model, guide)`` in eval mode.

    Raises:
        AdapterFileError, ConfigError, MissingResourceError: as :func:`bayes_adapters.load` and :func:`load_from_hub`;
            ``revision`` or ``token`` of a folder.
    """
    if as_folder(source).is_dir():
        require_no_revision(source, revision, token)
        return load(source, backbone)
    return load_from_hub(str(source), backbone, revision=revision, token=token)


class HubMixin:
    """The three methods of the hub's own mixin, for a class that holds a model and its guide.

    A subclass is made of them, ``cls(model, guide)``, and keeps them as attributes of these names.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Mood(HubMixin):
    ...     model: AdapterModel
    ...     guide: AdapterGuide
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.systems import build
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> net = BertModel(tiny)
    >>> folder = Mood(*build("blob", net, Bernoulli(), num_data=10, rank=2)).save_pretrained(tempfile.mkdtemp())
    >>> from bayes_adapters import remove
    >>> type(Mood.from_pretrained(folder, remove(net)).guide).__name__
    'MeanField'
    """

    model: AdapterModel
    guide: AdapterGuide

    def __init__(self, model: AdapterModel, guide: AdapterGuide) -> None:
        self.model, self.guide = model, guide

    def save_pretrained(self, directory: str | Path, **options: Any) -> Path:
        """Write adapter and model card: :func:`save_pretrained`."""
        return save_pretrained(directory, self.model, self.guide, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload them: :func:`push_to_hub`."""
        return push_to_hub(self.model, repo_id, guide=self.guide, **options)

    @classmethod
    def from_pretrained(cls: type[_Pair], source: str | Path, backbone: nn.Module, **options: Any) -> _Pair:
        """Build one of what :func:`from_pretrained` finds."""
        return cls(*from_pretrained(source, backbone, **options))


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
