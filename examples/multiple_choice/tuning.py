"""The value of every method's knob: the lowest NLL of the last state on dev utterances, with a seed of its own.

    python -m examples.multiple_choice.tuning --data FOLDER

Test utterances are not looked at. Every method has four values.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from bayes_adapters.backbones import language_model
from examples.multiple_choice.experiment import SETTINGS, dev_nll
from examples.multiple_choice.methods import METHODS
from examples.multiple_choice.task import make
from examples.studies.few_labels.tuning import SEED, search
from examples.studies.meld.data import Meld
from examples.studies.user_errors import user_errors


@user_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    transformers.utils.logging.disable_progress_bar()
    knobs = [name for name, tuned in METHODS.items() if tuned.values]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MELD's three *_sent_emo.csv")
    parser.add_argument("--methods", nargs="+", default=knobs, choices=knobs)
    parser.add_argument("--runs", type=Path, default=Path("runs/multiple_choice"), help="where hidden states are kept")
    chosen = parser.parse_args(arguments)
    task = make(Meld.load(chosen.data), language_model, SETTINGS, SEED, chosen.runs / "states")
    search(
        {name: METHODS[name] for name in chosen.methods},
        lambda name, value: dev_nll(task, name, SEED, SETTINGS, value),
    )
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
