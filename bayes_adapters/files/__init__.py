"""Adapters as files: this library's folders (save, load), PEFT's (:mod:`bayes_adapters.files.peft`), and the hub.

The Hugging Face hub is in :mod:`bayes_adapters.files.hub`.
"""

from bayes_adapters.files._adapter import fingerprint as fingerprint
from bayes_adapters.files._adapter import load as load
from bayes_adapters.files._adapter import load_task as load_task
from bayes_adapters.files._adapter import save as save
from bayes_adapters.files._checks import entries_of as entries_of
from bayes_adapters.files._checks import kinds as kinds
from bayes_adapters.files._checks import require_same as require_same
from bayes_adapters.files._folder import WEIGHTS as WEIGHTS
from bayes_adapters.files._folder import describe as describe
from bayes_adapters.files._folder import verified as verified
from bayes_adapters.files._pair_densities import read_pair_densities as read_pair_densities
