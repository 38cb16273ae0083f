"""Posteriors that an optimiser or a Markov chain finds, rather than the gradient of an ELBO alone."""

from bayes_adapters.samplers.ivon import Ivon as Ivon
from bayes_adapters.samplers.ivon import ivon as ivon
