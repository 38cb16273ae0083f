"""From a LoRA that PEFT trained to a Bayesian one, without training it again.

    python -m examples.peft_to_bayesian PEFT_FOLDER texts.csv --out bayesian

``texts.csv`` has the columns ``text`` and ``label``. PEFT's own head is taken over where it is a linear layer; else a
fresh one is trained on half of the rows, with the adapter as it is. The other half measures. The noise around the
adapter is the largest under which the NLL of its own answers grows no more than ``--tolerance`` allows.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from pathlib import Path

import torch

from bayes_adapters import Batch, Categorical, predict, save
from bayes_adapters.analysis.metrics import accuracy, ece, nll
from bayes_adapters.backbones import text_backbone
from bayes_adapters.files.peft import from_peft
from bayes_adapters.guides import Delta
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import batches, fit


def main() -> int:
    """Read the LoRA, give it a head if it brings none, put noise around it, measure before and after, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bayesian"))
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--epochs", type=int, default=10)
    growth = "how much the anchors' NLL may grow, as a share of the entropy of their mean prediction"
    parser.add_argument("--tolerance", type=float, default=0.05, help=growth)
    arguments = parser.parse_args()
    with arguments.data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})

    torch.manual_seed(0)
    backbone, tokenizer = text_backbone(arguments.backbone)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = from_peft(arguments.folder, backbone, Categorical(len(classes)))
    for warning in said:
        print(f"note: {warning.message}")

    def collate(some: list[dict[str, str]]) -> Batch:
        tokens = tokenizer([row["text"] for row in some], return_tensors="pt", padding=True, truncation=True)
        return Batch(dict(tokens), torch.tensor([classes.index(row["label"]) for row in some]))

    train, test = rows[::2], batches(rows[1::2], 32, collate, shuffle=False)
    guide = Delta(model)
    adapter = [p for name, p in model.backbone.named_parameters() if p.requires_grad and "lora" in name]
    for parameter in adapter:
        parameter.requires_grad_(False)  # the head alone
    fit(model, guide, batches(train, 8, collate), epochs=arguments.epochs, progress=False)

    anchors = batches(train, 32, collate, shuffle=False)
    bayesian, noisy, log = bayesianise(model, guide, anchors, tolerance=arguments.tolerance)
    labels = torch.tensor([classes.index(row["label"]) for row in rows[1::2]])
    for title, m, g in (("as trained", model, guide), ("with noise", bayesian, noisy)):
        found = predict(m, g, test, num_samples=16)
        scores = f"accuracy {accuracy(found.probs, labels):.3f}, NLL {nll(found.probs, labels):.3f}"
        print(f"{title}: {scores}, ECE {ece(found.probs, labels):.3f}, epistemic {found.epistemic.mean():.4f} nats")
    save(arguments.out, bayesian, noisy)
    print(f"{len(log.points)} noise levels were tried; saved in {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
