"""Hugging Face's ``Trainer`` for a model and its guide: :class:`BayesTrainer`. It needs the package accelerate.

>>> from bayes_adapters.trainer import BayesTrainer
"""

from bayes_adapters.trainer._predictive import Predicted as Predicted
from bayes_adapters.trainer._sft import SFTData as SFTData
from bayes_adapters.trainer._sft import sft_data as sft_data
from bayes_adapters.trainer._trainer import BayesTrainer as BayesTrainer
