"""What is refused before the hub is asked, and what it says when it does not help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bayes_adapters.errors import AdapterFileError, BayesAdaptersError, ConfigError, MissingResourceError, described


def require_source(source: object, model: type, guide: object, task: object, *fitted: object) -> None:
    """Raise :class:`ConfigError` unless ``source`` is a folder alone, or an instance of ``model`` with its guide."""
    if isinstance(source, model):
        if guide is None:
            raise ConfigError(f"A {type(source).__name__} is saved together with its guide: push_to_hub(..., guide=…).")
    elif not hasattr(source, "__fspath__") and not isinstance(source, str):
        raise ConfigError(f"push_to_hub takes a folder of save(), or a model; got {described(source)}.")
    elif guide is not None or task is not None or any(fitted):
        raise ConfigError(
            f"The folder {str(source)!r} has its guide, task and calibration in it already; guide=, task=, "
            "calibration=, pair_densities= and folder= are for a model."
        )


def require_online(what: str, repo_id: object) -> None:
    """Raise :class:`MissingResourceError` if the hub is set to offline."""
    if is_offline():
        raise MissingResourceError(
            f"{what} of {repo_id!r} needs the hub, and HF_HUB_OFFLINE=1 is set; unset it, or, of a model, say folder= "
            "to write what would be uploaded."
        )


def is_offline() -> bool:
    """Whether the hub is set to offline."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def require_no_revision(source: object, revision: str | None, token: str | None) -> None:
    """Raise :class:`ConfigError` if what only a repository has is asked of a folder."""
    if revision is not None or token is not None:
        raise ConfigError(
            f"{str(source)!r} is a folder here, which has no revision and needs no token; leave them out. For the "
            "repository of that name: load_from_hub."
        )


def require_adapter(repo_id: str, description: Path) -> None:
    """Raise :class:`AdapterFileError` unless what was downloaded has a ``description``."""
    if not description.is_file():
        raise AdapterFileError(
            f"The repository {repo_id!r} has no {description.name}, so no adapter of push_to_hub is in it. One of "
            "PEFT is read by from_peft, from a folder that huggingface_hub.snapshot_download returns."
        )


@contextmanager
def hub_answers(what: str, repo_id: object, revision: str | None) -> Iterator[None]:
    """Turn the many errors of the hub's client into one line that says ``what`` could not be done."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except BayesAdaptersError:
        raise
    except HFValidationError as error:
        raise ConfigError(
            f"{repo_id!r} is no name for a repository, such as 'user/my-adapter': {_line(error)}"
        ) from error
    except Exception as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise MissingResourceError(
            f"The adapter {repo_id!r}{at} could not be {what}: {type(error).__name__}: {_line(error)} Check the name, "
            "the connection (HF_ENDPOINT, HF_HUB_OFFLINE) and the login (hf auth login, or token=)."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
