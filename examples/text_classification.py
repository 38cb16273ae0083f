"""Your own texts and labels in, calibrated answers out.

    python -m examples.text_classification texts.csv --out answers.csv

``texts.csv`` has the columns ``text`` and ``label``; rows without a label are only answered. A fifth of the labelled
rows is held out to choose the epoch and to measure. ``answers.csv`` has a probability per class and the uncertainty of
every row, in nats.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from bayes_adapters import Batch, Categorical, predict, save
from bayes_adapters.analysis.metrics import accuracy, ece, nll
from bayes_adapters.backbones import text_backbone
from bayes_adapters.systems import SYSTEMS, build
from bayes_adapters.training import batches, fit


def main() -> int:
    """Train, measure, answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("answers.csv"))
    parser.add_argument("--adapter", type=Path, help="a folder to save the adapter in")
    parser.add_argument("--system", choices=list(SYSTEMS), default="c-lora")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--kl-weight", type=float, default=1e-2, help="1 is the ELBO")
    arguments = parser.parse_args()

    with arguments.data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows if row["label"]})
    labelled = [row for row in rows if row["label"]]
    order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0)).tolist()
    held = len(labelled) // 5
    test, train = ([labelled[i] for i in part] for part in (order[:held], order[held:]))

    torch.manual_seed(0)
    backbone, tokenizer = text_backbone()  # or AutoModel and AutoTokenizer of your choice

    def collate(some: list[dict[str, str]]) -> Batch:
        tokens = tokenizer([row["text"] for row in some], return_tensors="pt", padding=True, truncation=True)
        labels = [classes.index(row["label"]) for row in some if row["label"]]
        return Batch(dict(tokens), torch.tensor(labels) if len(labels) == len(some) else None)

    likelihood = Categorical(len(classes))
    model, guide = build(arguments.system, backbone, likelihood, num_data=len(train))
    held_out = batches(test, 32, collate, shuffle=False)
    training = batches(train, 8, collate)
    options = {"epochs": arguments.epochs, "kl_weight": arguments.kl_weight}
    fit(model, guide, training, recipe=None, validation=held_out, **options)  # larger steps than the papers'

    found = predict(model, guide, held_out, num_samples=16)
    labels = torch.tensor([classes.index(row["label"]) for row in test])
    print(f"held out, {len(test)} texts: accuracy {accuracy(found.probs, labels):.3f}, ", end="")
    print(f"NLL {nll(found.probs, labels):.3f} nats, ECE {ece(found.probs, labels):.3f}")

    plain = [row | {"label": ""} for row in rows]
    answer = predict(model, guide, batches(plain, 32, collate, shuffle=False), num_samples=16)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(f"p({name})" for name in classes), "total", "epistemic"])
        for row, p, total, epistemic in zip(rows, answer.probs, answer.total, answer.epistemic, strict=True):
            writer.writerow([row["text"], *(f"{v:.4f}" for v in p), f"{total:.4f}", f"{epistemic:.4f}"])
    if arguments.adapter:
        save(arguments.adapter, model, guide)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
