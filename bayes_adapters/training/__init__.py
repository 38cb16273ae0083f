"""Training: :func:`fit` minimises the negative ELBO, and :func:`batches` cuts a data set into batches.

>>> from bayes_adapters.training import batches, fit
"""

from bayes_adapters.training._data import batches as batches
from bayes_adapters.training._fit import FitResult as FitResult
from bayes_adapters.training._fit import fit as fit
