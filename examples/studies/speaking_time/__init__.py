"""How long does it take to say this script? Regression from text, with both methods called BayesLoRA."""
