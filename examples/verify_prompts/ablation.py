"""Which remedy makes CALIBER-X's uncertainty know the audio? Each one alone against the plain form, then together.

    python -m examples.verify_prompts.ablation --seeds 1

Trained on the training scripts, measured on the test scripts; records go to ``results/verify_prompts_ablation.json``
with the variant's name as ``method``, and each variant's settings to ``verify_prompts_ablation.settings.json`` beside
it: a variant that was measured with other settings is not taken for done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bayes_adapters.errors import BayesAdaptersError, ConfigError
from bayes_adapters.records import Record, read_records, write_records
from examples.verify_prompts.corpus import Corpus
from examples.verify_prompts.dataset import MISSING
from examples.verify_prompts.demo import pick_device, quiet
from examples.verify_prompts.experiment import CORRUPTED, PLAIN, Settings, evaluate, train

CONDITIONS = (
    "clean", "white@10", "white@0", "white@-5", "babble@10", "babble@0", "babble@-5", "reverb", "clip", MISSING,
    "ood-es", "ood-fr", "ood-it", "ood-ru",
)  # fmt: skip
_PLAIN = Settings(mix=PLAIN, reliability=False, prior_scale=0.2, kl_weight=1e-4, conditions=CONDITIONS)

VARIANTS: dict[str, Settings] = {
    "plain": _PLAIN,
    "withheld": replace(_PLAIN, mix={"clean": 0.9, MISSING: 0.1}),
    "noise": replace(_PLAIN, mix={k: v / 0.9 for k, v in CORRUPTED.items() if k != MISSING}),
    "noise+withheld": replace(_PLAIN, mix=CORRUPTED),
    "kl-x10": replace(_PLAIN, kl_weight=1e-3),
    "kl-x0.1": replace(_PLAIN, kl_weight=1e-5),
    "prior-1": replace(_PLAIN, prior_scale=1.0),
    "wide-prior": replace(_PLAIN, prior_scale=1.0, kl_weight=1e-5),
    "widen": replace(_PLAIN, reliability=True),
    "to-prior": replace(_PLAIN, reliability=True, fallback="prior", fallback_scale=None),
    "to-wide-prior": replace(_PLAIN, reliability=True, fallback="prior"),
    "all-to-wide-prior": Settings(fallback="prior", conditions=CONDITIONS),
    "all": Settings(conditions=CONDITIONS),
}
"""Variant → settings; ``all`` is what the demo trains.

``prior-1`` and ``kl-x0.1`` each change one thing of ``plain``, ``wide-prior`` both.
"""


def main() -> int:
    """Run every variant that has no records yet."""
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/verify_prompts_ablation.json"))
    arguments = parser.parse_args()
    try:
        run(arguments.variants, arguments.seeds, pick_device(arguments.device), arguments.out)
    except BayesAdaptersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(variants: Sequence[str], seeds: int, device: str, out: Path) -> None:
    """Train and measure what has no records in ``out`` yet, and write them as each variant finishes.

    Raises:
        ConfigError: ``out`` holds records of one of ``variants`` made with other settings, or nobody knows with which.
    """
    records: list[Record] = read_records(out) if out.is_file() else []
    check_settings(variants, records, out)
    corpus = Corpus.load()
    for seed in range(seeds):
        for name in variants:
            if any(record.method == name and record.seed == seed for record in records):
                continue
            settings = replace(VARIANTS[name], device=device)
            rows, _ = evaluate(corpus, train(corpus, "caliber-x", seed, settings), settings)
            records += [replace(record, method=name) for record in rows]
            write_settings(out, name)
            write_records(out, records)
            clean = next(record for record in rows if record.condition == "clean")
            print(f"{name} seed {seed}: clean AUC {clean.auc:.3f}, NLL {clean.nll:.3f}", flush=True)


def settings_file(out: Path) -> Path:
    """The file beside ``out`` that says how its records were made: variant → settings."""
    return out.with_suffix(".settings.json")


def check_settings(variants: Sequence[str], records: Sequence[Record], out: Path) -> None:
    """Refuse records of ``variants`` that were made with other settings than today's.

    Raises:
        ConfigError: see :func:`run`; the differences are listed.
    """
    found = _read_settings(out)
    for name in variants:
        if not any(record.method == name for record in records):
            continue
        remedy = f"Pass another --out, or remove {out} and {settings_file(out)}."
        if name not in found:
            raise ConfigError(f"{out} has records of {name!r}, and nothing says with which settings. {remedy}")
        there, now = found[name], _plain(name)
        different = [f"{k}: {there.get(k)} there, {now.get(k)} now" for k in now | there if there.get(k) != now.get(k)]
        if different:
            raise ConfigError(f"The records of {name!r} in {out} were made with {'; '.join(different)}. {remedy}")


def _plain(name: str) -> dict[str, Any]:
    """Return a variant's settings as JSON; the device changes no number that matters."""
    own = {key: value for key, value in asdict(VARIANTS[name]).items() if key != "device"}
    return dict(json.loads(json.dumps(own)))


def _read_settings(out: Path) -> dict[str, dict[str, Any]]:
    path = settings_file(out)
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}). Pass another --out, or remove it and {out}.") from error


def write_settings(out: Path, name: str) -> None:
    """Note today's settings of the variant ``name`` beside ``out``."""
    path = settings_file(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {key: value for key, value in _read_settings(out).items() if key != name}
    path.write_text(json.dumps(known | {name: _plain(name)}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
