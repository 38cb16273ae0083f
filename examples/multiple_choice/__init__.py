"""Sentiment as a question with answer letters, put to a real decoder, SmolLM2-135M-Instruct.

The answer is the letter whose token the model's own output layer finds most likely behind the prompt, as in the papers
on Bayesian LoRA. It is asked in their regime, few examples and the last state, and with the epoch that dev utterances
like best, of one and the same training.
"""
