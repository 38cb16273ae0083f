"""Pretrained backbones by name, and what is known of their inputs, hidden states and windows."""

from bayes_adapters.backbones._resources import cache_folder as cache_folder
from bayes_adapters.backbones.pretrained import LANGUAGE_MODEL as LANGUAGE_MODEL
from bayes_adapters.backbones.pretrained import SPEECH_ENCODER as SPEECH_ENCODER
from bayes_adapters.backbones.pretrained import TEXT_BACKBONE as TEXT_BACKBONE
from bayes_adapters.backbones.pretrained import language_model as language_model
from bayes_adapters.backbones.pretrained import locate as locate
from bayes_adapters.backbones.pretrained import text_backbone as text_backbone
from bayes_adapters.backbones.vision import vision_frames as vision_frames
from bayes_adapters.backbones.whisper import SAMPLE_RATE as SAMPLE_RATE
from bayes_adapters.backbones.whisper import SpeechEncoder as SpeechEncoder
from bayes_adapters.backbones.whisper import speech_encoder as speech_encoder
