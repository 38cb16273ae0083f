"""Texts with recordings: a posterior that listens. Which answers become unsure when the recording is taken away?

    python -m examples.text_and_audio pairs.csv

``pairs.csv`` has the columns ``text``, ``audio`` (a wav, flac or ogg file of at most five seconds, relative to the
file) and ``label`` (1 or 0: does the recording say the text?). A fifth of the rows is held out.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from bayes_adapters import Batch, Bernoulli, Frames, predict
from bayes_adapters.backbones import speech_encoder, text_backbone
from bayes_adapters.speech.audio import read_audio
from bayes_adapters.systems import build
from bayes_adapters.training import batches, fit


def main() -> int:
    """Encode the recordings once, train, and ask with and without them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    with arguments.data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    torch.manual_seed(0)
    backbone, tokenizer = text_backbone()
    speech = speech_encoder(max_seconds=5.0)  # a frozen Whisper; any encoder that gives frames will do
    folder, frames = arguments.data.parent, {}
    for row in rows:
        wave = read_audio(folder / row["audio"], max_seconds=speech.max_seconds)
        encoded = speech([wave])
        frames[row["audio"]] = encoded.values[0, encoded.mask[0]]  # (S, d): real frames only

    def collate(some: list[dict[str, str]]) -> Batch:
        tokens = tokenizer([row["text"] for row in some], return_tensors="pt", padding=True)
        own = [frames[row["audio"]] for row in some]
        values = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)  # (B, S, d)
        real = torch.arange(values.shape[1]) < torch.tensor([len(f) for f in own])[:, None]
        targets = torch.tensor([float(row["label"]) for row in some])
        return Batch(dict(tokens), targets, context={"audio": Frames(values, real)})

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    held = max(1, len(rows) // 5)
    test, train = ([rows[i] for i in part] for part in (order[:held], order[held:]))
    model, guide = build("caliber-x", backbone, Bernoulli(), context_dim=speech.width)
    fit(model, guide, batches(train, 8, collate), recipe=None, epochs=arguments.epochs, kl_weight=1e-3)

    batch = collate(test)
    heard = predict(model, guide, batch, num_samples=16)
    silent = predict(model, guide, Batch(batch.inputs, batch.targets), num_samples=16)
    print("p(yes)  total   without the recording  label  text")
    for row, p, total, q, unsure in zip(test, heard.probs, heard.total, silent.probs, silent.total, strict=True):
        print(f"{p:6.2f} {total:6.2f}   {q:6.2f} {unsure:6.2f}          {row['label']:>5}  {row['text'][:60]}")
    means = heard.total.mean(), silent.total.mean()
    print(f"mean total uncertainty: {means[0]:.3f} nats with the recordings, {means[1]:.3f} without")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
