"""The kinds that expressions name: a word, and the code points of its emoji, which name its file."""

from __future__ import annotations

_TABLE = """
dog 1f436, cat 1f431, rabbit 1f430, panda 1f43c, tiger 1f42f, frog 1f438, pig 1f437, cow 1f42e, fox 1f98a,
chicken 1f414, fish 1f420, whale 1f433, apple 1f34e, pear 1f350, lemon 1f34b, strawberry 1f353, tomato 1f345,
cake 1f382, car 1f697, bus 1f68d, tractor 1f69c, house 1f3e0, book 1f4d5, bell 1f514, clock 23f0, cup 2615,
chair 1fa91, tree 1f333, star 2b50, heart 2764-fe0f,
penguin 1f427, elephant 1f418, banana 1f34c, pizza 1f355, key 1f511, umbrella 2602-fe0f, rocket 1f680,
horse 1f40e, cactus 1f335, crown 1f451
"""

KINDS: dict[str, str] = dict(entry.split() for entry in _TABLE.replace("\n", " ").split(","))
"""Word → code points. Each is one word, singular, and one thing to see in both drawers' sets."""
HELD_OUT = ("penguin", "elephant", "banana", "pizza", "key", "umbrella", "rocket", "horse", "cactus", "crown")
"""Kinds of no training scene: neither the adapters nor the vision transformer saw their pictures in training."""
SEEN = tuple(word for word in KINDS if word not in HELD_OUT)
"""The other kinds, in the table's order."""
