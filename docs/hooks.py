"""Pages that mkdocs makes from the library: one per published system, and the API from docstrings.

A new system, guide or function appears here without an edit: system pages come from
``bayes_adapters.systems.SYSTEMS`` and the docstrings of its classes, API pages from what the packages export.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from docstrings import as_markdown

import bayes_adapters
from bayes_adapters.systems import PROCEDURES, SYSTEMS, Recipe

PACKAGES = (
    "models", "guides", "likelihoods", "priors", "heads", "backbones", "training", "trainer", "systems", "reliability",
    "files", "surgery", "samplers", "analysis", "testing", "generation", "speech", "modalities", "data", "sites",
    "adapters", "inference", "distributions",
)  # fmt: skip
"""Packages of the API, in the order of the table of contents; the root comes first, ``MODULES`` last."""
MODULES = ("kernels", "schedules", "devices", "registry", "errors")
RESULTS = {
    "script-verification": "script verification",
    "body-signals": "body signals",
    "sentiment": "sentiment",
    "speaking-time": "speaking time",
}
"""Pages of ``results/`` → how they are called."""
EXAMPLES = {"num_data": "len(train)", "context_dim": "384", "lengths": '{"text": 32, "audio": 50}'}
"""Option that a system needs → what an example writes."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the table of contents."""
    assert config.nav is not None
    for entry in config.nav:
        if "Systems" in entry:
            entry["Systems"] = ["systems/index.md", *({n: f"systems/{n}.md"} for n in SYSTEMS)]
        if "API" in entry:
            entry["API"] = [{title: f"api/{name}.md"} for name, title in api_titles().items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"systems/index.md": systems_index()} | api_pages()
    pages |= {f"systems/{name}.md": system_page(name, Path(config.docs_dir)) for name in SYSTEMS}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def systems_index() -> str:
    """Return the page that lists all systems."""
    lines = [
        "# Systems",
        "",
        "A system is a model, a guide and a recipe; `build(name, backbone, likelihood)` makes model and guide, and",
        "`fit` trains them by the recipe. Any other pair of a model and a guide works as well.",
        "",
        "| name | model | guide | posterior | published as |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, system in SYSTEMS.items():
        cells = [f"[{name}]({name}.md)", f"`{system.model.__name__}`", f"`{system.guide.__name__}`"]
        lines.append("| " + " | ".join([*cells, _depends(name), system.source.partition(";")[0]]) + " |")
    return "\n".join([*lines, "", "Methods that begin with a trained system:", "", *_procedures(), ""])


def system_page(name: str, folder: Path) -> str:
    """Return the page of one system: source, equations, what was guessed, options, recipe, where it was measured.

    Args:
        name: of the system.
        folder: of the documentation; pages of results are searched for the name.
    """
    system = SYSTEMS[name]
    required = ", ".join(f"{option}={EXAMPLES.get(option, '...')}" for option in _required(system))
    model, guide = system.model, system.guide
    lines = [f"# {name}", "", _sentence(system.source), ""]
    lines += ["## Structure and prior", "", f"Model [`{model.__name__}`][bayes_adapters.models.{model.__name__}]", ""]
    lines += [_before_arguments(model), "", "## Posterior", ""]
    lines += [f"Guide [`{guide.__name__}`][bayes_adapters.guides.{guide.__name__}]", "", _before_arguments(guide), ""]
    if system.head is not None:
        head = type(system.head())
        lines += [
            "## Head",
            "",
            f"[`{head.__name__}`][bayes_adapters.heads.{head.__name__}]",
            "",
            _before_arguments(head),
            "",
        ]
    if system.inferred:
        lines += ["## What had to be guessed, and where this departs", "", _sentence(system.inferred), ""]
    options = {**system.model_options, **system.guide_options}
    lines += ["## Build", "", "```text", "from bayes_adapters.systems import build", ""]
    lines += [f'model, guide = build("{name}", backbone, likelihood{", " if required else ""}{required})']
    lines += ["fit(model, guide, batches)  # by the recipe below; what you give beats it", "```", ""]
    lines += ["| option | default of this system |", "| --- | --- |"]
    lines += [f"| `{key}` | `{value}` |" for key, value in options.items()]
    lines += ["", "## How it was trained", "", "| setting | value |", "| --- | --- |", *_recipe(system.training), ""]
    measured = [
        f"[{title}](../results/{page}.md)"
        for page, title in RESULTS.items()
        if f"\n| {name} |" in (folder / "results" / f"{page}.md").read_text(encoding="utf-8")
    ]
    lines += ["## Measured here", "", ", ".join(measured) + "." if measured else "In no table.", ""]
    return "\n".join(lines)


def api_titles() -> dict[str, str]:
    """Return name of a page → its title."""
    return {"index": "bayes_adapters"} | {name: name for name in (*PACKAGES, *MODULES)}


def api_pages() -> dict[str, str]:
    """Return path → page: everything public is on one page, the first that exports it."""
    shown: set[int] = set()
    pages = {"api/index.md": _package_page("bayes_adapters", bayes_adapters, shown)}
    for name in (*PACKAGES, *MODULES):
        dotted = f"bayes_adapters.{name}"
        pages[f"api/{name}.md"] = _package_page(dotted, importlib.import_module(dotted), shown)
    return pages


def _package_page(dotted: str, module: ModuleType, shown: set[int]) -> str:
    lines = [f"# {dotted}", "", as_markdown(inspect.getdoc(module) or ""), ""]
    for name, value in vars(module).items():
        own = inspect.isclass(value) or inspect.isfunction(value)
        if not own or name.startswith("_") or not value.__module__.startswith("bayes_adapters") or id(value) in shown:
            continue
        shown.add(id(value))
        lines += [f"::: {dotted}.{name}", ""]
    if dotted == "bayes_adapters" or not hasattr(module, "__path__"):
        return "\n".join(lines)
    for found in pkgutil.iter_modules(module.__path__, f"{dotted}."):
        inner = importlib.import_module(found.name)
        if found.name.rpartition(".")[2].startswith("_") or found.ispkg:
            continue
        fresh = [
            name
            for name, value in vars(inner).items()
            if (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == found.name
            and not name.startswith("_")
            and id(value) not in shown
        ]
        shown |= {id(getattr(inner, name)) for name in fresh}
        for name in fresh:
            lines += [f"::: {found.name}.{name}", ""]
    return "\n".join(lines)


def _before_arguments(cls: type) -> str:
    """Return a class's docstring up to its arguments: what it is, its density, its source."""
    text = re.split(r"\n\n(?:Args|Raises|Returns|Attributes):", inspect.getdoc(cls) or "")[0]
    return as_markdown(text).strip()


def _recipe(recipe: Recipe) -> list[str]:
    defaults = {f.name: f.default for f in fields(Recipe)}
    values = {f.name: getattr(recipe, f.name) for f in fields(Recipe)}
    return [f"| {k} | {_shown(v)} |" for k, v in values.items() if v != defaults[k] and v not in (None, {})]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"`{key}`: {_shown(part)}" for key, part in value.items())
    if hasattr(value, "lr"):
        return f"lr {value.lr:g}, weight decay {value.weight_decay:g}"
    return str(value)


def _required(system: Any) -> list[str]:
    """Return the options to write down in an example: those without a default, and N where the model takes it."""
    from bayes_adapters.systems.system import required

    given = {*system.model_options, *system.guide_options}
    needed = [o for cls in (system.model, system.guide) for o in required(cls) if o not in given]
    return needed + (["num_data"] if "num_data" in system.options()["model"] else [])


def _depends(name: str) -> str:
    """Say what a guide's docstring says first."""
    first = (inspect.getdoc(SYSTEMS[name].guide) or "").partition("\n\n")[0]
    return as_markdown(first).replace("\n", " ").replace("|", "\\|")


def _procedures() -> list[str]:
    return [f"* `{name}`: {text}" for name, text in PROCEDURES.items()]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
