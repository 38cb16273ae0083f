"""Your own texts and labels in, by Hugging Face's Trainer; calibrated answers out.

    python -m examples.trainer texts.csv --folder runs/trainer

``texts.csv`` has the columns ``text`` and ``label``. A fifth of the rows is held out: the epoch with the best NLL there
is the one that is kept, in ``folder/adapter``. On several GPUs: ``torchrun --nproc_per_node 2 -m examples.trainer …``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, TrainingArguments

from bayes_adapters import Categorical
from bayes_adapters.backbones import text_backbone
from bayes_adapters.systems import SYSTEMS, build
from bayes_adapters.trainer import BayesTrainer


def main() -> int:
    """Train, keep the best epoch, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/trainer"))
    parser.add_argument("--system", choices=list(SYSTEMS), default="c-lora")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--kl-weight", type=float, default=1e-2, help="1 is the ELBO")
    arguments = parser.parse_args()
    with arguments.data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})
    torch.manual_seed(0)
    backbone, tokenizer = text_backbone()  # or AutoModel and AutoTokenizer of your choice
    examples = [{**tokenizer(row["text"], truncation=True), "labels": classes.index(row["label"])} for row in rows]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    held = len(rows) // 5
    test, train = ([examples[i] for i in part] for part in (order[:held], order[held:]))
    model, guide = build(arguments.system, backbone, Categorical(len(classes)), num_data=len(train))

    def compute_metrics(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    args = TrainingArguments(
        str(arguments.folder),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,  # by eval_loss: the NLL of the averaged draws
        report_to="none",
    )
    trainer = BayesTrainer(
        model,
        guide,
        args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(3)],
        kl_weight=arguments.kl_weight,
    )
    trainer.train()
    trainer.save_model()
    found = trainer.predict(test)
    scores = f"accuracy {found.metrics['test_accuracy']:.3f}, NLL {found.metrics['test_nll']:.3f} nats"
    print(f"held out, {len(test)} texts: {scores}, epistemic {found.predictive.epistemic.mean():.4f} nats")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
