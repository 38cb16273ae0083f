"""How much does hearing the recording change the uncertainty of the answer? Per kind of recording, with a picture.

    python -m examples.studies.verify_prompts.attribute --adapter runs/demo/adapter --out runs/attribution

Without an adapter there (``make demo`` leaves one), or with ``--quick``, a CALIBER-X is trained for a few epochs first.
The text is the backbone's own input and never withheld: the change is from script alone to script and recording.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from bayes_adapters import AdapterGuide, AdapterModel, load
from bayes_adapters.analysis import plots
from bayes_adapters.analysis.attribution import Attribution, attribute
from bayes_adapters.analysis.bootstrap import PairedDifference
from bayes_adapters.devices import pick_device
from examples.studies.user_errors import user_errors
from examples.studies.verify_prompts.corpus import FOREIGN, Corpus, PairBatches
from examples.studies.verify_prompts.demo import SHORT
from examples.studies.verify_prompts.experiment import train
from examples.studies.verify_prompts.predictions import resampled_together

NOISY = ("white@-5", "babble@-5")


def trained(corpus: Corpus, adapter: Path, quick: bool, device: str) -> tuple[AdapterModel, AdapterGuide]:
    """Load the adapter of the demo, or train a short one; say which."""
    if adapter.exists() and not quick:
        print(f"adapter: {adapter}", file=sys.stderr)
        return load(adapter, corpus.backbone().to(device))
    why = "--quick" if quick else f"there is no {adapter}; make demo trains a full one"
    print(f"training caliber-x for {SHORT.epochs} epochs ({why})", file=sys.stderr)
    result = train(corpus, "caliber-x", 0, replace(SHORT, device=device))
    return result.model, result.guide


def kinds(
    corpus: Corpus, model: AdapterModel, guide: AdapterGuide, samples: int
) -> Iterator[tuple[str, Attribution, list[str]]]:
    """Attribute each kind of test recording; with each what its recordings say, which is drawn together."""
    for condition in ("clean", *NOISY, *(f"ood-{language}" for language in FOREIGN)):
        dataset = corpus.evaluation("test", condition)
        found = attribute(model, guide, PairBatches(dataset, 32, shuffle=False), num_samples=samples)
        pairs = [dataset.pairs[i] for i in found.index.tolist()]
        groups = resampled_together([(pair.recording_key, pair.script_text, pair.label) for pair in pairs])
        right = torch.tensor([pair.label == 1 for pair in pairs])
        parts = {"right script": right, "wrong script": ~right} if condition == "clean" else {condition: right | ~right}
        for name, rows in parts.items():
            yield name, found[rows], [said for said, kept in zip(groups, rows.tolist(), strict=True) if kept]


def table(rows: dict[str, dict[str, PairedDifference]], counts: dict[str, int]) -> str:
    """Format mean changes with 95 % intervals as Markdown."""
    head = " | ".join(f"Δ {part} (nats)" for part in plots.PARTS)
    lines = [f"| recording | n | {head} |", "| --- | --- | --- | --- | --- |"]
    for name, means in rows.items():
        cells = [f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for d in (means[part] for part in plots.PARTS)]
        lines.append(f"| {name} | {counts[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


@user_errors
def main() -> int:
    """Parse the command line and run."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, default=Path("runs/demo/adapter"))
    parser.add_argument("--out", type=Path, default=Path("runs/attribution"))
    parser.add_argument("--samples", type=int, default=16, help="posterior draws")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="train a short adapter even if there is one")
    arguments = parser.parse_args()
    corpus = Corpus.load()
    model, guide = trained(corpus, arguments.adapter, arguments.quick, str(pick_device(arguments.device)))
    rows: dict[str, dict[str, PairedDifference]] = {}
    counts: dict[str, int] = {}
    for name, found, scripts in kinds(corpus, model, guide, arguments.samples):
        rows[name], counts[name] = found.means(groups=scripts)["audio"], len(scripts)
    print(table(rows, counts))
    arguments.out.mkdir(parents=True, exist_ok=True)
    plots.attribution_bars(rows, what="the recording").savefig(arguments.out / "attribution.png")
    print(f"wrote {arguments.out / 'attribution.png'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
