"""Text written by a backbone with a language-model head, under posterior draws that are held from token to token."""

from bayes_adapters.generation.generate import generate as generate
from bayes_adapters.generation.generation import Generation as Generation
from bayes_adapters.generation.generation import Writing as Writing
from bayes_adapters.generation.guard import Action as Action
from bayes_adapters.generation.guard import Guard as Guard
from bayes_adapters.generation.scores import scores as scores
from bayes_adapters.generation.semantic import SemanticEntropy as SemanticEntropy
from bayes_adapters.generation.semantic import semantic_entropy as semantic_entropy
