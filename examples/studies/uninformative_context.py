"""What a context that says nothing costs: text alone, CALIBER-X, and CALIBER-X behind a gate, on made data.

200 training examples of six words and three frames of 16 numbers; 100 for the gate; 2000 to measure. The words decide
half of the label; the frames the other half, or nothing. ``python -m examples.studies.uninformative_context`` writes
the table of ``docs/methods.md``: held-out NLL minus that of text alone, mean over seeds ± its standard error.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

import torch
from transformers import BertConfig, BertModel

from bayes_adapters import Batch, Bernoulli, Frames, predict
from bayes_adapters.data.transforms import ModalityDropout
from bayes_adapters.guides import Contextual, CrossAttention
from bayes_adapters.models import FusionCore, StochasticCore
from bayes_adapters.reliability import choose_gate
from bayes_adapters.training import batches, fit, transformed

SEEDS, WIDTH = range(5), 16
_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
_CORES: dict[str, Any] = {"targets": ["value"], "rank": 3}


def task(size: int, seed: int, informative: bool) -> Batch:
    """Make examples; ``informative`` lets one number of the frames decide half of the label."""
    rng = torch.Generator().manual_seed(seed)
    ids, heard = torch.randint(2, 20, (size, 6), generator=rng), torch.randn(size, generator=rng)
    logit = 1.5 * ((ids < 6).float().sum(1) - 1.33) + 2.5 * heard * informative
    targets = (torch.rand(size, generator=rng) < logit.sigmoid()).float()
    values = torch.randn(size, 1, WIDTH, generator=rng) + 0.5 * torch.randn(size, 3, WIDTH, generator=rng)
    if informative:
        values[..., 0] = heard[:, None]
    return Batch({"input_ids": ids}, targets, {"audio": Frames(values, torch.ones(size, 3, dtype=torch.bool))})


def trained(kind: str, data: Batch, seed: int, dropout: float) -> tuple[Any, Any]:
    """Train text alone, CALIBER-X, or CALIBER-X on top of late fusion."""
    torch.manual_seed(seed)
    backbone = BertModel(BertConfig(vocab_size=20, **_SIZES))
    if kind == "fusion":
        model: Any = FusionCore(backbone, Bernoulli(), context_dim=WIDTH, fusion_width=32, **_CORES)
    else:
        model = StochasticCore(backbone, Bernoulli(), **_CORES)
    guide = Contextual(model) if kind == "text" else CrossAttention(model, context_dim=WIDTH, dim=8)
    stream = transformed(batches(data, 100, seed=seed), ModalityDropout("audio", dropout), seed=seed)
    optimizer: Any = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
    fit(model, guide, stream, epochs=30, kl_weight=1e-4, kl_mode="per_token_mean", optimizer=optimizer, progress=False)
    return model, guide


def main() -> None:
    """Print one row for each method."""
    rows: dict[str, dict[bool, list[float]]] = defaultdict(lambda: defaultdict(list))
    for informative in (False, True):
        for seed in SEEDS:
            train, held = (task(n, 10 * seed + i, informative) for i, n in enumerate((200, 100)))
            test = task(2000, 999, informative)

            def nll(pair: tuple[Any, Any], test: Batch = test) -> float:
                return -float(predict(*pair, test, num_samples=4).log_density.mean())  # type: ignore[union-attr]

            text = nll(trained("text", train, seed, 0.0))
            for kind, name in (("caliber", "CALIBER-X"), ("fusion", "CALIBER-X with fusion")):
                rows[name][informative].append(nll(trained(kind, train, seed, 0.0)) - text)
                pair = trained(kind, train, seed, 0.5)
                rows[f"{name}, half of the contexts dropped"][informative].append(nll(pair) - text)
                gate = choose_gate(*pair, held, num_samples=4).gate
                rows[f"{name}, dropped and gated"][informative].append(nll(pair) - text)
                print(f"{name} informative={informative} seed={seed} gate={gate:g}", flush=True)
    for name, found in rows.items():
        cells = [f"{statistics.mean(v):+.3f} ± {statistics.stdev(v) / len(v) ** 0.5:.3f}" for v in found.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
