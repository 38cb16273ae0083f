"""A language model learns a small corpus: does the epistemic part of its uncertainty mark what is outside?"""
