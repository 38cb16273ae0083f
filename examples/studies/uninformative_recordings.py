"""What a recording that says nothing costs, on real recordings and scripts, and what one that says something gives.

    python -m examples.studies.uninformative_recordings --page docs/methods.md

The prompts of script verification, each script once: which part of a telephone exchange says it (digits, letters,
voicemail, conferences)? The text is the script with half of its words withheld, the same half in every run; the
recording is that of another prompt, drawn at random, or the prompt's own, which tells the words withheld. MiniLM on
cached states, the top two layers adapted; Whisper's frames, five a second. Every seed draws training, held-out and test
prompts anew, and other wrong recordings. The held-out prompts are for the gate alone. Text alone is C-LoRA; gated rows
are trained with half of the recordings withheld. A second call continues; records go to
``results/uninformative_context.json``, the table between the markers ``uninformative_context`` of the page.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Categorical, Frames, predict
from bayes_adapters.data.transforms import ModalityDropout
from bayes_adapters.guides import Contextual, CrossAttention, Delta
from bayes_adapters.models import FusionCore, FusionLoRA, StochasticCore
from bayes_adapters.reliability import choose_gate
from bayes_adapters.training import fit, transformed
from examples.studies.comparison import markdown, rewrite_file
from examples.studies.few_labels.task import States, split
from examples.studies.length_batches import LengthBatches
from examples.studies.meld.data import Utterance
from examples.studies.user_errors import user_errors
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.prompts import Prompt, normalise

CLASSES = {"digits": 0, "letters": 1, "phonetic": 1, "vm": 2, "conf": 3, "confbridge": 3}
"""First part of a prompt's name → class."""
TRAIN, HELD = 160, 80
POOL = 5
"""Neighbouring frames that are averaged: five a second are left of 25."""
RECORDINGS = ("another", "own")
TEXT = "text alone (C-LoRA)"
_SAMPLES, _BATCH = 4, 16


@dataclass(frozen=True)
class Result:
    """One row: a method, a seed, and whose recording was heard.

    Args:
        method: as in the table.
        seed: of everything random.
        recording: one of :data:`RECORDINGS`.
        nll: on the test prompts, nats.
        accuracy: there.
        gate: how far the context counts, 0 to 1; NaN where there is none.
    """

    method: str
    seed: int
    recording: str
    nll: float
    accuracy: float
    gate: float


class Heard(States):
    """Scripts as hidden states below the adapted layers, and whose recording each is heard with.

    Args:
        utterances: the scripts, their labels the classes.
        tokenizer: of the text encoder.
        below: its lower layers.
        frames: of every prompt's own recording, (S, d) each, in the order of the scripts.
    """

    def __init__(self, utterances: Sequence[Utterance], tokenizer: Any, below: Any, frames: Sequence[Tensor]) -> None:
        super().__init__(utterances, tokenizer, below)
        self.frames = list(frames)

    def of(self, rows: Sequence[int], heard: Sequence[int]) -> Heard:
        """Return the scripts ``rows``, each heard with the recording of the prompt that ``heard`` says."""
        some = self.subset(rows)
        assert isinstance(some, Heard)
        some.frames = [self.frames[row] for row in heard]
        return some

    def batch(self, rows: Sequence[int]) -> Batch:
        """Pad states and frames to a batch."""
        values = nn.utils.rnn.pad_sequence([self.frames[row] for row in rows], batch_first=True)
        lengths = torch.tensor([len(self.frames[row]) for row in rows])
        audio = Frames(values, torch.arange(values.shape[1]) < lengths[:, None])
        return replace(super().batch(rows), context={"audio": audio})


class Parts(NamedTuple):
    """What one run reads: batches to train on, to choose the gate on, and to measure."""

    train: Heard
    held: Heard
    test: Heard


def withheld(text: str, key: str) -> str:
    """Return the script without half of its words, rounded down or up by chance, the same at every call."""
    source, words = random.Random(f"withheld/{key}"), text.split()
    count = (len(words) + source.randrange(2)) // 2
    kept = sorted(source.sample(range(len(words)), len(words) - count))
    return " ".join(words[place] for place in kept) or "…"


def scripts(prompts: Sequence[Prompt]) -> list[Utterance]:
    """Return the English prompts of the four classes, each script once."""
    seen: dict[str, Utterance] = {}
    for prompt in prompts:
        label = CLASSES.get(prompt.key.replace("/", "-").split("-")[0])
        if prompt.language == "en" and label is not None:
            said = Utterance(prompt.key, prompt.key, withheld(prompt.text, prompt.key), label)
            seen.setdefault(normalise(prompt.text), said)
    return list(seen.values())


def parts(data: Heard, seed: int, recording: str, train: int | None = None, held: int | None = None) -> Parts:
    """Draw a run's prompts; every one has its own recording, or that of another prompt of the same part."""
    train, held = train or TRAIN, held or HELD
    order = list(range(len(data)))
    source = random.Random(f"parts/{seed}")
    source.shuffle(order)
    found = []
    for rows in (order[:train], order[train : train + held], order[train + held :]):
        turned = source.randrange(1, len(rows))  # nobody hears his own
        heard = rows if recording == "own" else rows[turned:] + rows[:turned]
        found.append(data.of(rows, heard))
    return Parts(*found)


def _text(backbone: nn.Module, _: int) -> tuple[AdapterModel, AdapterGuide]:
    model = StochasticCore(backbone, Categorical(4), **_cores())
    return model, Contextual(model)


def _late_fusion(backbone: nn.Module, width: int) -> tuple[AdapterModel, AdapterGuide]:
    options: dict[str, Any] = {"targets": ["query", "value"], "rank": 8, "alpha": 16.0}
    model = FusionLoRA(backbone, Categorical(4), context_dim=width, **options)
    return model, Delta(model)


def _caliber(backbone: nn.Module, width: int) -> tuple[AdapterModel, AdapterGuide]:
    model = StochasticCore(backbone, Categorical(4), **_cores())
    return model, CrossAttention(model, context_dim=width, dim=64)


def _both(backbone: nn.Module, width: int) -> tuple[AdapterModel, AdapterGuide]:
    model = FusionCore(backbone, Categorical(4), context_dim=width, **_cores())
    return model, CrossAttention(model, context_dim=width, dim=64)


def _cores() -> dict[str, Any]:
    prior = dist.Normal(torch.tensor(0.0), torch.tensor(0.2))
    return {"targets": ["query", "value"], "rank": 8, "alpha": 16.0, "prior": prior}


METHODS: Mapping[str, tuple[Callable[[nn.Module, int], tuple[AdapterModel, AdapterGuide]], bool]] = {
    TEXT: (_text, False),
    "late fusion": (_late_fusion, False),
    "CALIBER-X": (_caliber, False),
    "CALIBER-X behind a gate": (_caliber, True),
    "CALIBER-X with fusion behind a gate": (_both, True),
}
"""Method → what makes it, and whether it is trained with half of the recordings withheld and gated."""


def run(
    data: Heard, backbone: nn.Module, seed: int, recording: str, epochs: int, text: Result | None = None
) -> list[Result]:
    """Train and measure every method with one seed; ``text`` is what text alone gave beside other recordings."""
    found = []
    train, held, test = parts(data, seed, recording)
    tried, asked = (list(LengthBatches(part, 64, length=part.length)) for part in (held, test))
    for name, (make, gated) in METHODS.items():
        if name == TEXT and text is not None:
            found.append(replace(text, recording=recording))
            continue
        torch.manual_seed(seed)
        model, guide = make(copy.deepcopy(backbone), data.frames[0].shape[1])
        stream: Any = LengthBatches(train, _BATCH, length=train.length, shuffle=True, seed=seed)
        fit(
            model,
            guide,
            transformed(stream, ModalityDropout("audio", 0.5), seed=seed) if gated else stream,
            recipe=None,
            epochs=epochs,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
            kl_weight=1e-4,
            clip_norm=1.0,
            seed=seed,
            progress=False,
        )
        gate = choose_gate(model, guide, tried, num_samples=_SAMPLES).gate if gated else math.nan
        answer = predict(model, guide, asked, num_samples=_SAMPLES)
        assert answer.log_density is not None
        labels = torch.cat([batch.targets for batch in asked if isinstance(batch.targets, Tensor)])
        accuracy = float((answer.probs.argmax(-1) == labels).double().mean())
        found.append(Result(name, seed, recording, -float(answer.log_density.double().mean()), accuracy, gate))
        print(f"{name}, {recording} recording, seed {seed}: {found[-1].nll:.3f}, gate {gate:g}", flush=True)
    return found


def table(results: Sequence[Result]) -> list[str]:
    """Return NLL minus that of text alone, mean over seeds ± its standard error, and how often the gate was open."""
    nll = {(r.method, r.recording, r.seed): r.nll for r in results}
    rows = []
    for method in METHODS:
        cells = []
        for recording in RECORDINGS:
            own = [r for r in results if (r.method, r.recording) == (method, recording)]
            apart = [r.nll - nll[TEXT, recording, r.seed] for r in own]
            error = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else math.nan
            opened = sum(r.gate > 0.0 for r in own)
            spread = "" if math.isnan(error) else f" ± {error:.3f}"
            nats = f"{fmean(r.nll for r in own):.3f}" if method == TEXT else f"{fmean(apart):+.3f}{spread}"
            cells += [nats.replace("-", "−"), f"{opened} of {len(own)}" if not math.isnan(own[0].gate) else "–"]
        rows.append([method, *cells])
    return markdown(["method", "another's recording", "gate open", "its own recording", "gate open"], rows)


def load() -> tuple[Heard, nn.Module]:
    """Return scripts and recordings, and the adapted layers of the text encoder."""
    corpus = Corpus.load(languages=("en",))
    below, top = split(corpus.backbone(), 2)
    said = scripts(corpus.prompts)
    places = {key: name for name in corpus.stores for key in getattr(corpus.splits, name)}
    frames = [corpus.stores[places[one.key]].get("en", "clean", one.key) for one in said]
    pooled = [torch.stack([part.mean(0) for part in one.split(POOL)]) for one in frames]
    return Heard(said, corpus.tokenizer, below, pooled), top


@user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--records", type=Path, default=Path("results/uninformative_context.json"))
    parser.add_argument("--page", type=Path)
    chosen = parser.parse_args(arguments)
    results = read(chosen.records)
    missing = [
        (seed, recording)
        for seed in chosen.seeds
        for recording in RECORDINGS
        if not any((r.seed, r.recording) == (seed, recording) for r in results)
    ]
    if missing:
        data, backbone = load()
    for seed, recording in missing:
        text = next((r for r in results if (r.method, r.seed) == (TEXT, seed)), None)
        results += run(data, backbone, seed, recording, chosen.epochs, text)
        rows = [{k: None if v != v else v for k, v in asdict(r).items()} for r in results]
        chosen.records.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = table(results)
    print("\n".join(lines))
    if chosen.page is not None:
        rewrite_file(chosen.page, {"uninformative_context": lines})
    return 0


def read(path: Path) -> list[Result]:
    """Return the records of a file; none where there is no file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return [Result(**row | {"gate": math.nan if row["gate"] is None else row["gate"]}) for row in rows]


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
