"""From hidden states to the numbers that a likelihood takes."""

from bayes_adapters.heads.pooling import Pooling as Pooling
