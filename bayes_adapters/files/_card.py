"""The model card of an adapter: facts of its description, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def card(about: Mapping[str, Any], repo_id: str) -> str:
    """Return the text of ``README.md`` for an adapter.

    Args:
        about: the contents of its ``adapter.json``.
        repo_id: where it will be.
    """
    base, model, guide = about["base"], about["model"], about["guide"]
    name = base["name_or_path"] if _HUB_NAME.fullmatch(base["name_or_path"]) else None  # a folder says nothing there
    config = dict(model["config"])
    layers = config.pop("targets", None) or []
    entries = {
        "base model": f"{base['class']}{f' `{name}`' if name else ''}, {base['parameters']:,} parameters, "
        f"{base['dtype']}, fingerprint `{base['fingerprint'][:16]}`",
        "structure": f"`{model['structure']}` {_options(config)}",
        "adapted layers": str(len(layers)),
        "posterior": f"`{guide['name']}` {_options(guide['config'])}{_temperature(guide)}",
        **({"head": f"`{about['head']['name']}` {_options(about['head']['config'])}"} if "head" in about else {}),
        "likelihood": f"`{about['likelihood']['name']}` {_options(about['likelihood']['config'])}",
        "examples it was trained on": f"{about['num_data']:,}" if about["num_data"] else "not recorded",
        "versions": ", ".join(f"{package} {number}" for package, number in about["versions"].items()),
    }
    head = ["library_name: bayes-adapters", *([f"base_model: {name}"] if name else [])]
    head += ["tags:", *(f"- {json.dumps(tag)}" for tag in ("bayes-adapters", "bayesian", "lora", model["structure"]))]
    rows = "\n".join(f"| {what} | {_cell(value)} |" for what, value in entries.items())
    backbone = f'AutoModel.from_pretrained("{name}")' if name else f"...  # the same {base['class']}"
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "",
            f"# {repo_id.rpartition('/')[2]}",
            "",
            "A Bayesian low-rank adapter of the library bayes-adapters. Its files hold posterior and head, not the "
            "base model.",
            "",
            "| | |",
            "|---|---|",
            rows,
            "",
            "```python",
            "from transformers import AutoModel",
            "",
            "from bayes_adapters.files.hub import load_from_hub",
            "",
            f"backbone = {backbone}",
            f'model, guide = load_from_hub("{repo_id}", backbone)',
            "```",
            "",
        ]
    )


def _temperature(guide: Mapping[str, Any]) -> str:
    tau = guide.get("posterior_temperature")
    return "" if tau is None else f" at temperature {tau:g}"


def _options(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in config.items() if not isinstance(value, dict))


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ")
