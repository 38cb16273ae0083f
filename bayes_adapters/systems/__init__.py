"""Published systems by name: a model, a guide and a recipe each."""

from bayes_adapters.systems._build import build as build
from bayes_adapters.systems._build import names as names
from bayes_adapters.systems._start import start as start
from bayes_adapters.systems._start import start_at as start_at
from bayes_adapters.systems._start import start_from_peft as start_from_peft
from bayes_adapters.systems.procedures import PROCEDURES as PROCEDURES
from bayes_adapters.systems.recipes import Decay as Decay
from bayes_adapters.systems.recipes import Rate as Rate
from bayes_adapters.systems.recipes import Recipe as Recipe
from bayes_adapters.systems.recipes import Unit as Unit
from bayes_adapters.systems.recipes import window as window
from bayes_adapters.systems.system import System as System
from bayes_adapters.systems.system import query_value as query_value
from bayes_adapters.systems.table import SYSTEMS as SYSTEMS
