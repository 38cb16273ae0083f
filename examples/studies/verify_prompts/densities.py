"""What densities of training frames, and of training pairs, tell apart: no adapter is trained.

``python -m examples.studies.verify_prompts.densities`` fits each to the clean training recordings, with its limits from
the validation ones, measures test recordings, writes ``results/verify_prompts_densities.json`` and the tables between
the markers of the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters import Bernoulli, Frames
from bayes_adapters.models import LoRA
from bayes_adapters.reliability import FrameDensity, PairDensity
from examples.studies.comparison import rewrite_file
from examples.studies.user_errors import user_errors
from examples.studies.verify_prompts import kept
from examples.studies.verify_prompts.corpus import FOREIGN, Corpus
from examples.studies.verify_prompts.markdown import table

MARKER = "verify_prompts_densities"
NOISES = ("white@-5", "babble@-5")
DRAWS = 2000
_SMOOTH = 9  # frames, .36 s


class Told(NamedTuple):
    """How well one detector tells one kind of test recording, or pair, from ordinary ones.

    Args:
        detector: ``distance``, ``two-sided``, ``moments`` or ``pairs``.
        kind: what is to be told apart.
        auroc: P(it scores higher than an ordinary one), ties one half.
        low, high: 95 % interval, resampling prompts.
        flagged: share of these beyond the detector's limit.
        ordinary: share of ordinary ones beyond it.
        n: how many of these.
    """

    detector: str
    kind: str
    auroc: float
    low: float
    high: float
    flagged: float
    ordinary: float
    n: int


def frozen(frames: Float[Tensor, "S d"]) -> Float[Tensor, "S d"]:
    """Repeat the frame in the middle."""
    return frames[len(frames) // 2].expand_as(frames).clone()


def smoothed(frames: Float[Tensor, "S d"]) -> Float[Tensor, "S d"]:
    """Average each frame with its neighbours, nine frames in all, fewer at the ends."""
    pool = torch.nn.functional.avg_pool1d
    found = pool(frames.T[None], _SMOOTH, stride=1, padding=_SMOOTH // 2, count_include_pad=False)
    return found[0].T


def shuffled(frames: Float[Tensor, "S d"], seed: int = 0) -> Float[Tensor, "S d"]:
    """Put the frames into a random order."""
    return frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))]


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {"frozen": frozen, "smoothed": smoothed, "shuffled": shuffled}


def told(
    detector: str, kind: str, high: Mapping[str, tuple[float, float]], low: Mapping[str, tuple[float, float]]
) -> Told:
    """Compare scores: prompt → (score, γ) of what is to be told apart, and of ordinary recordings or pairs.

    A draw of the bootstrap takes prompts, with all that is theirs on both sides.
    """
    names = list(dict.fromkeys([*high, *low]))
    a, b = (torch.tensor([side[name][0] for name in side], dtype=torch.float64) for side in (high, low))
    wins = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    rows, columns = (torch.tensor([names.index(name) for name in side]) for side in (high, low))
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(names), (DRAWS, len(names)), generator=rng)
    weight = torch.zeros(DRAWS, len(names), dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    left, right = weight[:, rows], weight[:, columns]
    spread = ((left @ wins) * right).sum(1) / (left.sum(1) * right.sum(1))
    least, most = (float(spread.nanquantile(q)) for q in (0.025, 0.975))
    flagged, ordinary = (sum(gamma < 1 for _, gamma in side.values()) / len(side) for side in (high, low))
    return Told(detector, kind, float(wins.mean()), least, most, flagged, ordinary, len(high))


def of_frames(corpus: Corpus) -> list[Told]:
    """Measure the densities of frames on foreign, noisy and spoilt test recordings."""
    train, validation, test = (corpus.stores[name] for name in ("train", "validation", "test"))
    group = torch.cat([train.get("en", "clean", key) for key in corpus.splits.train])
    held = [_one(validation.get("en", "clean", key)) for key in corpus.splits.validation]
    densities: dict[str, tuple[FrameDensity, bool]] = {
        "distance": (FrameDensity.fit([group], held, two_sided=False), True),
        "two-sided": (FrameDensity.fit([group], held, two_sided=True), False),
        "moments": (FrameDensity.fit([group], held, moments=True), True),
    }
    clean = {key: test.get("en", "clean", key) for key in corpus.splits.test}
    kinds: dict[str, dict[str, Tensor]] = {}
    for language in FOREIGN:
        keys = {pair.recording_key for pair in corpus.pairs("test", "foreign", language)}
        kinds[language] = {key: test.get(language, "clean", key) for key in sorted(keys)}
    kinds |= {noise: {key: test.get("en", noise, key) for key in clean} for noise in NOISES}
    kinds |= {name: {key: change(own) for key, own in clean.items()} for name, change in SPOILT.items()}
    found = []
    for name, (density, by_distance) in densities.items():
        ordinary = _scores(density, clean, by_distance)
        found += [told(name, kind, _scores(density, own, by_distance), ordinary) for kind, own in kinds.items()]
    return found


def _one(frames: Tensor) -> Frames:
    return Frames(frames[None], torch.ones(1, len(frames), dtype=torch.bool))


def _scores(density: FrameDensity, recordings: Mapping[str, Tensor], distance: bool) -> dict[str, tuple[float, float]]:
    """Key → (distance, or −log γ where far is on both sides of it; γ)."""
    out = {}
    for key, frames in recordings.items():
        gamma = density(_one(frames))
        score = density.distance(_one(frames)) if distance else -gamma.clamp_min(1e-38).log()
        out[key] = float(score), float(gamma)
    return out


def of_pairs(corpus: Corpus) -> list[Told]:
    """Measure the density on pairs: test recordings with scripts of others, drawn at random and hard ones."""
    model = LoRA(corpus.backbone(), Bernoulli())
    density = kept.pair_density(corpus, model)
    right = _agreements(density, corpus, model, "clean", 1)
    kinds = {"wrong script": ("clean", 0), "wrong by a word or of like length": ("hard", 0)}
    return [told("pairs", kind, _agreements(density, corpus, model, *which), right) for kind, which in kinds.items()]


def _agreements(
    density: PairDensity, corpus: Corpus, model: LoRA, condition: str, label: int
) -> dict[str, tuple[float, float]]:
    inputs, contexts = kept.features(corpus, model, "test", condition, label)
    pairs = [pair.recording_key for pair in corpus.evaluation("test", condition).pairs if pair.label == label]
    scores, gamma = -density.agreement(inputs, contexts), density(inputs, contexts)
    return dict(zip(pairs, zip(scores.tolist(), gamma.tolist(), strict=True), strict=True))


def tables(found: Sequence[Told]) -> list[str]:
    """Return two tables, of the frames' densities and of the pairs'."""

    def cell(one: Told) -> str:
        return f"{one.auroc:.2f} [{one.low:.2f}, {one.high:.2f}]".replace("0.", ".")

    frames = [one for one in found if one.detector != "pairs"]
    kinds = list(dict.fromkeys(one.kind for one in frames))
    by = {(one.detector, one.kind): one for one in frames}
    rows = [
        [name, *(cell(by[name, kind]) for kind in kinds), f"{by[name, kinds[0]].ordinary:.0%}"]
        for name in dict.fromkeys(one.detector for one in frames)
    ]
    lines = table(["density of frames", *kinds, "clean ones flagged"], rows)
    pairs = [[one.kind, cell(one), f"{one.flagged:.0%}", f"{one.ordinary:.0%}"] for one in found if one not in frames]
    return lines + table(["density on pairs", "AUROC", "flagged", "right pairs flagged"], pairs)


def read(path: Path) -> list[Told]:
    """Read the records."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [Told(**row) for row in rows]


@user_errors
def main() -> int:
    """Parse the command line, measure, write records and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path("docs/results/script-verification.md"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--again", action="store_true", help="measure even where there are records")
    arguments = parser.parse_args()
    path = arguments.results / f"{MARKER}.json"
    if arguments.again or not path.is_file():
        corpus = Corpus.load()
        found = [one._asdict() for one in (*of_frames(corpus), *of_pairs(corpus))]
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = tables(read(path))
    rewrite_file(arguments.page, {MARKER: lines})
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
