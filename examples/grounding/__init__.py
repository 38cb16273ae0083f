"""Grounding: which of the things in a picture do the words mean? A box and a mask for each referring expression.

The data are made here of real little pictures with names: emoji. A scene is four to seven of them on a pale ground,
several of the same kind among them; an expression names one by kind, colour, size, place, or by what it stands next to
("the smaller cat", "the red apple left of the dog"). :mod:`examples.grounding.expressions` says when an expression is
true of a thing, and refuses one that is true of two, or nearly so.

==================  =====================================================================================
``kinds``           the pictures that expressions name, those held out among them
``npm``             fetches a package of the npm registry, checked by SHA-256
``pictures``        two drawers' emoji, or shapes made here for tests
``scenes``          pictures, boxes and masks of a scene
``expressions``     the grammar, its meaning, and the checker
``data``            the data set: splits by scenes, held-out kinds, another drawer
``vision``          a small vision transformer, pre-trained to name what each patch shows
``pretrain``        trains it on scenes of some thousand other pictures; ``python -m examples.grounding.pretrain``
``encoders``        the two frozen encoders' tokens: that transformer, and MiniLM
``probe``           what a linear probe reads off the frozen tokens
``sheet``           draws scenes with boxes and expressions; ``python -m examples.grounding.sheet``
``examples``        expressions as batches: pictures and words, or tokens that the frozen encoders made of them
``heads``           a head of one's own: a mask from every patch, a box from where attention lies
``methods``         the compared methods, for box, mask or both
``training``        trains one of them
``experiment``      measures it; ``scores``, ``records`` and ``tables`` say what it found
``picture``         λ of CoLA by layer
``results``         all methods × seeds; ``python -m examples.grounding.results``
==================  =====================================================================================

Emoji by Twitter (npm ``emoji-datasource-twitter``, CC BY 4.0) are for training and test, those by Google
(``emoji-datasource-google``, Apache 2.0) for the shifted test.
"""
