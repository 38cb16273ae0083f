"""Posteriors that an optimiser or a Markov chain finds, rather than the gradient of an ELBO alone."""

from bayes_adapters.samplers._ivon import Ivon as Ivon
from bayes_adapters.samplers._ivon import ivon as ivon
from bayes_adapters.samplers._langevin import Collector as Collector
from bayes_adapters.samplers._langevin import Langevin as Langevin
from bayes_adapters.samplers._langevin import Plan as Plan
from bayes_adapters.samplers._langevin import langevin as langevin
from bayes_adapters.samplers._nuts import nuts as nuts
