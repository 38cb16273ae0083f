"""Trust in a context by its density under the training contexts, and in an example by that of its features."""

from bayes_adapters.reliability.blending import blend as blend
from bayes_adapters.reliability.feature_density import feature_density as feature_density
from bayes_adapters.reliability.frame_density import FrameDensity as FrameDensity
from bayes_adapters.reliability.gating import GateChoice as GateChoice
from bayes_adapters.reliability.gating import choose_gate as choose_gate
from bayes_adapters.reliability.pair_density import PairDensity as PairDensity
from bayes_adapters.reliability.pair_density import frozen_pairs as frozen_pairs
from bayes_adapters.reliability.reliability import Fallback as Fallback
from bayes_adapters.reliability.reliability import Reliability as Reliability
from bayes_adapters.reliability.reliability import fall_back as fall_back
from bayes_adapters.reliability.saved import load_pair_densities as load_pair_densities
from bayes_adapters.reliability.widening import Widening as Widening
from bayes_adapters.reliability.widening import calibrate_scale as calibrate_scale
