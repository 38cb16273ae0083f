"""TRL's recipe of supervised fine-tuning, and a posterior instead of a point: prompts and completions in, BLoB out.

    python -m examples.sft pairs.jsonl --folder runs/sft
    python -m examples.sft pairs.jsonl --folder runs/sft --steps 60 --resume

A line of ``pairs.jsonl`` is ``{"prompt": "What is 2 + 3? ", "completion": "5"}``, or the two as lists of messages. A
fifth is held out. TRL tokenises, masks the prompts and collates; a ``BayesTrainer`` trains the adapter on SmolLM2, and
its checkpoints have adapter and guide alone. ``--tiny`` takes a random Llama.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig

from bayes_adapters.backbones import language_model
from bayes_adapters.generation import generate
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.systems import build
from bayes_adapters.trainer import BayesTrainer, sft_data
from examples._tiny import tiny_language_model


def main() -> int:
    """Train, measure, and answer the first held-out prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/sft"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    rows = Dataset.from_json(str(arguments.data), cache_dir=str(arguments.folder / "data"))
    torch.manual_seed(0)
    pair: tuple[Any, Any] = tiny_language_model() if arguments.tiny else language_model()
    backbone, tokenizer = pair
    held = len(rows) // 5
    options = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 0.5}
    args = SFTConfig(
        str(arguments.folder),
        max_steps=arguments.steps,
        max_length=256,
        activation_checkpointing=False,  # TRL's default; of a large model, do it in the backbone
        bf16=torch.cuda.is_available(),
        report_to="none",
        **options,
    )
    data = sft_data(backbone, tokenizer, args, rows.select(range(held, len(rows))), rows.select(range(held)))
    size = backbone.config.vocab_size
    shape = {"targets": ["q_proj", "v_proj"], "rank": 4, "head": LanguageModelHead()}
    model, guide = build("blob", backbone, NextToken(size), num_data=len(data.train_dataset), **shape)
    trainer = BayesTrainer(model, guide, args, **data._asdict(), kl_weight=1e-2)
    trainer.train(resume_from_checkpoint=arguments.resume or None)
    found: Any = trainer.predict(data.eval_dataset).predictive
    print(f"held out, {held} texts: perplexity {float(found.perplexity):.2f} per token that is learnt")
    for row in data.eval_dataset.select(range(min(3, held))):
        prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        asked = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt)).long()}
        said = generate(model, guide, asked, tokenizer=data.processing_class, max_new_tokens=12)
        print(f"{float(said.mean()):.4f} nats of epistemic uncertainty per token: {(said.texts or [''])[0]!r}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
