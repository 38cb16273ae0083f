"""The value of every method's knob: the lowest NLL on dev utterances, with a training seed of its own.

    python -m examples.studies.few_labels.tuning --data FOLDER

Test utterances are not looked at. A method has four values, so that none has been looked after better than another.
What was found on 200 utterances, mean dev NLL in nats (the chosen values are in
:data:`examples.studies.few_labels.methods.METHODS`)::

    to be written
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from bayes_adapters.backbones import text_backbone
from examples.studies.few_labels.experiment import SETTINGS, dev_nll
from examples.studies.few_labels.methods import METHODS, method
from examples.studies.few_labels.task import FewLabels
from examples.studies.meld.data import Meld
from examples.studies.meld.results import backbone
from examples.studies.user_errors import user_errors

SEED = 100
"""Training seed of the search: none of the comparison's. It also draws the training utterances."""


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
    for name in chosen.methods:
        found = {}
        for value in method(name).values:
            found[value] = dev_nll(task, name, SEED, SETTINGS, value)
            print(f"{name} ({method(name).knob})  {value:g}: {found[value]:.4f}", flush=True)
        print(f"{name}  → {min(found, key=lambda value: found[value]):g}", flush=True)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
