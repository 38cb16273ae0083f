"""Models: one published structure per file.

A model says structure, prior and likelihood; a guide says how cores are inferred.
"""

from bayes_adapters.models.adapter_dropout import AdapterDropout as AdapterDropout
from bayes_adapters.models.balora import BaLoRA as BaLoRA
from bayes_adapters.models.cola import CoLA as CoLA
from bayes_adapters.models.concat_core import ConcatCore as ConcatCore
from bayes_adapters.models.concat_lora import ConcatLoRA as ConcatLoRA
from bayes_adapters.models.diagonal_core import DiagonalCore as DiagonalCore
from bayes_adapters.models.fusion import FusionLoRA as FusionLoRA
from bayes_adapters.models.fusion_core import FusionCore as FusionCore
from bayes_adapters.models.gated_lora import GatedLoRA as GatedLoRA
from bayes_adapters.models.lora import LoRA as LoRA
from bayes_adapters.models.lora_xs import LoRAXS as LoRAXS
from bayes_adapters.models.polar import PoLAR as PoLAR
from bayes_adapters.models.stochastic_core import StochasticCore as StochasticCore
from bayes_adapters.models.stochastic_down import StochasticDown as StochasticDown
from bayes_adapters.models.stochastic_factors import StochasticFactors as StochasticFactors
from bayes_adapters.models.wander import Wander as Wander
