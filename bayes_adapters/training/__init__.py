"""Training: :func:`fit` minimises the negative ELBO, :func:`tune` chooses settings, :func:`batches` cuts data.

:func:`transformed` drops and corrupts contexts on the way.

>>> from bayes_adapters.training import batches, fit, transformed, tune
"""

from bayes_adapters.training._data import batches as batches
from bayes_adapters.training._fit import FitResult as FitResult
from bayes_adapters.training._fit import fit as fit
from bayes_adapters.training._transformed import transformed as transformed
from bayes_adapters.training._tune import Trial as Trial
from bayes_adapters.training._tune import TuneResult as TuneResult
from bayes_adapters.training._tune import tune as tune
