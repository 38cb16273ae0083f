"""Bayesian low-rank adapters for Hugging Face backbones, written as Pyro models and guides.

``h = W₀ x + s · B E A x``: every method is a prior and a guide over the core E. Structures are in
:mod:`bayes_adapters.models`, posterior families in :mod:`bayes_adapters.guides`.
"""

from bayes_adapters.adapters.installation import adapted_layers as adapted_layers
from bayes_adapters.adapters.installation import adapters_disabled as adapters_disabled
from bayes_adapters.adapters.installation import remove as remove
from bayes_adapters.adapters.targets import Targets as Targets
from bayes_adapters.adapters.targets import select as select
from bayes_adapters.data.batch import Batch as Batch
from bayes_adapters.data.batch import Frames as Frames
from bayes_adapters.files import fingerprint as fingerprint
from bayes_adapters.files import load as load
from bayes_adapters.files import load_task as load_task
from bayes_adapters.files import save as save
from bayes_adapters.inference.elbo import ELBO as ELBO
from bayes_adapters.inference.elbo import ElboTerms as ElboTerms
from bayes_adapters.inference.guide import AdapterGuide as AdapterGuide
from bayes_adapters.inference.handlers import KLMode as KLMode
from bayes_adapters.inference.handlers import KLWeight as KLWeight
from bayes_adapters.inference.model import AdapterModel as AdapterModel
from bayes_adapters.inference.predictive import evaluating as evaluating
from bayes_adapters.inference.predictive import predict as predict
from bayes_adapters.likelihoods import Bernoulli as Bernoulli
from bayes_adapters.likelihoods import Categorical as Categorical
from bayes_adapters.likelihoods import Gaussian as Gaussian
from bayes_adapters.likelihoods import HeteroscedasticGaussian as HeteroscedasticGaussian
from bayes_adapters.likelihoods import Prediction as Prediction
from bayes_adapters.likelihoods import Tagging as Tagging
from bayes_adapters.sites import Granularity as Granularity

__version__ = "0.1.0"
