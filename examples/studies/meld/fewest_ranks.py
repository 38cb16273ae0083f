"""How few ranks BayesLoRA (2026) can keep at LoRA's accuracy: its KL weight for ``bayeslora-2026-pruned``.

    python -m examples.studies.meld.fewest_ranks --data FOLDER

trains ``lora`` once and ``bayeslora-2026`` with each of :data:`WEIGHTS`, all with seed 0 and the settings of the
comparison, measures them on all dev utterances with its number of draws, and prints a Markdown table. Test utterances
are not read. The rule, written down before anything was run:

    Of the KL weights whose accuracy is not below LoRA's, and whose NLL is not above it, by more than one standard
    error, the one that leaves the fewest ranks; of equals, that with the lower NLL.

The standard error is that of the mean difference of the same utterances. The question is about accuracy; the NLL is
asked as well because it sees losses that accuracy does not. Measured (with the difference to LoRA ± a standard error;
ranks of all 12 layers together, and of the six query layers from the first to the last)::

    KL weight  accuracy              NLL                   ranks  of query layers
    (LoRA)     .648                  .804                  96     8/8/8/8/8/8
    0.001      .655, +.006 ± .007    .808, +.004 ± .006    96     8/8/8/8/8/8
    0.002      .657, +.009 ± .008    .809, +.005 ± .006    96     8/8/8/8/8/8
    0.003      .659, +.011 ± .008    .809, +.005 ± .006    96     8/8/8/8/8/8
    0.005      .658, +.010 ± .008    .810, +.006 ± .006    96     8/8/8/8/8/8
    0.01       .640, −.008 ± .008    .813, +.009 ± .007    90     5/8/8/7/8/6
    0.02       .647, −.001 ± .009    .811, +.007 ± .008    64     1/4/4/1/2/4
    0.03       .651, +.003 ± .010    .816, +.012 ± .009    57     1/1/1/1/1/5
    0.05       .646, −.003 ± .010    .826, +.022 ± .009    38     1/1/1/1/1/1

So the weight is 0.02, with 64 of 96 ranks. By accuracy alone it would be 0.05, with 38. 0.03 and 0.05 were added
because 0.02, the last of the first list, had been chosen. Query layers lose their ranks first, down to the one that
each layer keeps; value layers lost none up to 0.02, one at 0.03, and have 3/7/6/6/5/5 at 0.05. The plain LoRA exported
from a pruned adapter predicts what the adapter predicts at its mean, to the last bit.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import Tensor

from bayes_adapters import predict
from bayes_adapters.analysis import metrics
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import Delta
from bayes_adapters.surgery.export import to_lora
from examples.studies.meld.data import Meld, Utterances
from examples.studies.meld.experiment import Trained, draws, train_member
from examples.studies.meld.kl_weights import weighted
from examples.studies.meld.methods import Built, method
from examples.studies.meld.results import backbone
from examples.studies.meld.task import Settings, Task
from examples.studies.user_errors import user_errors

WEIGHTS = (1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2)


@dataclass(frozen=True, eq=False)
class Found:
    """One adapter on the dev utterances.

    Args:
        right: whether its most probable class was right, 1 or 0, shape (N,), float64.
        nll: in nats, shape (N,), float64.
        ranks: layer path → ranks left.
        export: largest difference between the probabilities of the plain LoRA exported from it and its own at its
            mean.
    """

    right: Tensor
    nll: Tensor
    ranks: Mapping[str, int]
    export: float

    @property
    def total(self) -> int:
        """Ranks of all layers together."""
        return sum(self.ranks.values())


def task_of(data: Meld, settings: Settings, seed: int) -> Task:
    """Draw a task whose ``test`` is all dev utterances; training chooses its epoch on ``dev``, a part of them."""
    tokenizer = text_backbone()[1]
    every = data.sample("dev", None, 0)
    task = Task.make(data, every[:1], tokenizer, backbone, settings, seed)
    return replace(task, test=Utterances(every, tokenizer))


def measure(task: Task, weight: float | None, seed: int, settings: Settings) -> Found:
    """Train ``bayeslora-2026`` with a KL weight, or ``lora`` where it is None, and measure it on all dev utterances.

    Args:
        task: of :func:`task_of`.
        weight: w, see :data:`examples.studies.meld.methods.KL_WEIGHTS`.
        seed: of initialisation, order and draws.
        settings: as for the comparison.
    """
    build = method("lora").build if weight is None else weighted("bayeslora-2026", weight)
    built, history, count = train_member(task, build, seed, settings)
    trained = Trained("dev", seed, [built], math.nan, [history], count)
    probs, labels = draws(trained, task, "test", settings).double().mean(0), task.test.targets()
    nll = -probs.gather(1, labels[:, None])[:, 0].clamp(min=1e-7).log()
    return Found(metrics.correct(probs, labels).double(), nll, built.model.ranks, _export(built, task, settings))


def _export(built: Built, task: Task, settings: Settings) -> float:
    batches = task.batches("test", settings)
    lora = to_lora(built.model, built.guide, task.backbone().to(settings.device))
    own = predict(built.model, built.guide, batches, mean_only=True).probs
    return float((own - predict(lora, Delta(lora), batches, num_samples=1).probs).abs().max())


def paired(own: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the mean of ``own − reference`` over the same utterances, and its standard error.

    >>> paired(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    (0.5, 0.28867512941360474)
    """
    difference = own - reference
    return float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))


def acceptable(own: Found, lora: Found) -> bool:
    """Whether neither accuracy nor NLL is worse than LoRA's by more than one standard error."""
    (more, error), (nats, nll_error) = paired(own.right, lora.right), paired(own.nll, lora.nll)
    return more >= -error and nats <= nll_error


def choose(found: Mapping[float, Found], lora: Found) -> float | None:
    """Return the KL weight that the rule of this module's docstring chooses; None if none is acceptable."""
    good = {weight: own for weight, own in found.items() if acceptable(own, lora)}
    return min(good, key=lambda w: (good[w].total, float(good[w].nll.mean())), default=None)


def row(name: str, own: Found, lora: Found) -> str:
    """Format a row of the table."""
    layers = defaultdict[str, list[str]](list)
    for path, rank in own.ranks.items():
        layers[path.rsplit(".", 1)[-1]].append(str(rank))
    means = []
    for values, reference in ((own.right, lora.right), (own.nll, lora.nll)):
        difference, error = paired(values, reference)
        means.append(f"{float(values.mean()):.3f} | {difference:+.3f} ± {error:.3f}")
    ranks = ", ".join(f"{part} {'/'.join(each)}" for part, each in layers.items())
    cells = [name, *means, f"{own.total}", ranks, f"{own.export:.0e}"]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| KL weight | accuracy | − LoRA ± s.e. | NLL | − LoRA ± s.e. | ranks | from first to last layer | export |",
    "|---|---|---|---|---|---|---|---|",
)


@user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MELD's three *_sent_emo.csv")
    parser.add_argument("--weights", nargs="+", type=float, default=list(WEIGHTS))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    settings = Settings()
    task = task_of(Meld.load(chosen.data), settings, chosen.seed)
    lora = measure(task, None, chosen.seed, settings)
    print(*HEAD, row("LoRA", lora, lora), sep="\n", flush=True)
    found: dict[float, Found] = {}
    for weight in chosen.weights:
        found[weight] = measure(task, weight, chosen.seed, settings)
        print(row(f"{weight:g}", found[weight], lora), flush=True)
    best = choose(found, lora)
    print("", "No KL weight keeps LoRA's accuracy and NLL." if best is None else f"Chosen: {best:g}.", sep="\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
