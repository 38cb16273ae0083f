"""The value of every method's knob: the lowest NLL on dev utterances, with a training seed of its own.

    python -m examples.studies.few_labels.tuning --data FOLDER

Test utterances are not looked at. A method has four values, so that none has been looked after better than another;
where the best lay at an end the four moved. What was found on 200 utterances, dev NLL in nats (without a search LoRA
has 2.650, the ensemble 2.257; the chosen values are in :data:`examples.studies.few_labels.methods.METHODS`)::

    map (weight decay)            1: 2.29   3: 1.951   10: 1.429   30: 0.966   100: 1.073
    mc-dropout (p)                0.1: 2.43   0.2: 2.28   0.4: 2.05   0.6: 1.87   0.8: 1.368   0.9: 1.160   0.95: 1.121
    bayeslora-2025 (p)            0.15: 2.25   0.3: 2.19   0.5: 1.92   0.7: 1.53   0.8: 1.342   0.9: 1.142   0.95: 1.116
    blob (KL weight)              0.3: 1.251   1: 1.120   3: 1.056   10: 1.007   30: 0.988   100: 0.982   300: 0.965
    scalabl (KL weight)           1: 2.22   10: 2.08   100: 1.996   300: 1.961   1000: 1.954   3000: 1.949
    bayeslora-2026 (KL weight)    0.01: 0.991   0.03: 0.982   0.1: 0.950   0.3: 0.953   1: 0.958   3: 0.964   10: 0.973
    c-lora (KL weight)            0.003: 1.063   0.01: 0.956   0.03: 0.959   0.1: 0.966
    tfb (tolerance)               0.05: 1.871   0.2: 1.356   0.4: 1.124   0.8: 1.045   1.6: 1.189
    laplace (prior precision)     0.1: 1.074   1: 1.046   10: 1.107   100: 1.545
    swag (learning rate)          0.003: 2.658   0.01: 2.592   0.03: 2.632   0.1: 1.789   0.3: 1.033   1: 1.061
    ivon (learning rate)          0.01: 0.990   0.03: 0.995   0.1: 1.001   0.3: 1.010   1: 1.014
    low-rank (KL weight)          1: 1.075   3: 1.021   10: 0.997   30: 0.987   100: 0.964   300: 0.950
    full (KL weight)              0.3: 1.005   1: 0.990   3: 0.975   10: 0.965   30: 0.960   100: 0.959
    bayesian-linear (KL weight)   0.3: 1.707   1: 1.465   3: 1.276   10: 1.054   30: 1.027   100: 1.085
    vbll (KL weight)              0.3: 1.856   1: 1.534   3: 1.287   10: 1.056   30: 1.025   100: 1.088
    gp-head (KL weight)           0.3: 1.066   1: 1.065   3: 1.065   10: 1.074

Laplace was searched with ten draws of its weights; a thousand draws of its outputs have not been.

A search of one seed tells differences of some hundredths of a nat apart, not less.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from bayes_adapters.backbones import text_backbone
from examples.studies.few_labels.experiment import SETTINGS, dev_nll
from examples.studies.few_labels.methods import METHODS, Tuned
from examples.studies.few_labels.task import FewLabels
from examples.studies.meld.data import Meld
from examples.studies.meld.results import backbone
from examples.studies.user_errors import user_errors

SEED = 100
"""Training seed of the search: none of the comparison's. It also draws the training utterances."""


def search(methods: Mapping[str, Tuned], loss: Callable[[str, float], float]) -> None:
    """Print the loss of every value of each method's knob, and the value of the least.

    Args:
        methods: name → method.
        loss: (name, value of its knob) → NLL on dev utterances, nats.
    """
    for name, tuned in methods.items():
        found = {}
        for value in tuned.values:
            found[value] = loss(name, value)
            print(f"{name} ({tuned.knob})  {value:g}: {found[value]:.4f}", flush=True)
        print(f"{name}  → {min(found, key=lambda value: found[value]):g}", flush=True)


@user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    transformers.utils.logging.disable_progress_bar()
    knobs = [name for name, tuned in METHODS.items() if tuned.values]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MELD's three *_sent_emo.csv")
    parser.add_argument("--methods", nargs="+", default=knobs, choices=knobs)
    chosen = parser.parse_args(arguments)
    data = Meld.load(chosen.data)
    foreign = data.splits["dev"][:1]
    tokenizer = text_backbone()[1]
    task = FewLabels.of(data, foreign, tokenizer, backbone, SETTINGS, SEED)
    search(
        {name: METHODS[name] for name in chosen.methods}, lambda name, value: dev_nll(task, name, SEED, SETTINGS, value)
    )
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
