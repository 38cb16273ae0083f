"""The low-rank update in a network: the adapted layer, where it is put, and the pass that it runs in."""

from bayes_adapters.adapters.installation import adapted_layers as adapted_layers
from bayes_adapters.adapters.installation import adapters_disabled as adapters_disabled
from bayes_adapters.adapters.installation import install as install
from bayes_adapters.adapters.installation import remove as remove
from bayes_adapters.adapters.linear import AdaptedLinear as AdaptedLinear
from bayes_adapters.adapters.recomputation import same_pass as same_pass
from bayes_adapters.adapters.targets import Targets as Targets
from bayes_adapters.adapters.targets import select as select
