"""CALIBER on other backbones: text × audio × the layer of the audio encoder that is read.

Does this recording say this script (:mod:`examples.studies.verify_prompts`), in folds that share no script? On which
encoders does a posterior conditioned on frames beat a network that sees their mean, and on which does it not?
"""
