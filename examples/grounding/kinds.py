"""The kinds that expressions name: a word, and the code points of its emoji, which name its file."""

from __future__ import annotations

_TABLE = """
dog 1f436, cat 1f431, rabbit 1f430, bear 1f43b, panda 1f43c, tiger 1f42f, lion 1f981, frog 1f438, monkey 1f435,
pig 1f437, cow 1f42e, horse 1f40e, fox 1f98a, koala 1f428, mouse 1f42d, chicken 1f414, penguin 1f427, owl 1f989,
snail 1f40c, ladybug 1f41e, butterfly 1f98b, bee 1f41d, spider 1f577-fe0f, crab 1f980, octopus 1f419, fish 1f420,
whale 1f433, dolphin 1f42c, turtle 1f422, snake 1f40d, elephant 1f418, duck 1f986, sheep 1f411, camel 1f42a,
apple 1f34e, pear 1f350, banana 1f34c, lemon 1f34b, strawberry 1f353, peach 1f351, pineapple 1f34d, watermelon 1f349,
tomato 1f345, carrot 1f955, corn 1f33d, eggplant 1f346, avocado 1f951, pizza 1f355, hamburger 1f354, doughnut 1f369,
cookie 1f36a, cake 1f382, bread 1f35e, cheese 1f9c0, egg 1f95a, lollipop 1f36d,
car 1f697, bus 1f68d, bicycle 1f6b2, rocket 1f680, airplane 2708-fe0f, boat 26f5, tractor 1f69c, truck 1f69a,
house 1f3e0, tent 26fa, helicopter 1f681, train 1f682,
key 1f511, book 1f4d5, bell 1f514, crown 1f451, guitar 1f3b8, trumpet 1f3ba, umbrella 2602-fe0f, balloon 1f388,
gift 1f381, hammer 1f528, clock 23f0, camera 1f4f7, anchor 2693, candle 1f56f-fe0f, cup 2615, hat 1f3a9, boot 1f462,
drum 1f941, violin 1f3bb, magnet 1f9f2, trophy 1f3c6, basketball 1f3c0, lock 1f512, pencil 270f-fe0f, phone 1f4de,
chair 1fa91, teapot 1fad6, robot 1f916, ghost 1f47b, skull 1f480,
tree 1f333, cactus 1f335, sunflower 1f33b, tulip 1f337, mushroom 1f344, star 2b50, moon 1f319, sun 2600-fe0f,
cloud 2601-fe0f, snowflake 2744-fe0f, fire 1f525, heart 2764-fe0f, rose 1f339, clover 1f340, snowman 26c4
"""

KINDS: dict[str, str] = dict(entry.split() for entry in _TABLE.replace("\n", " ").split(","))
"""Word → code points. Each is one word, singular, and one thing to see in both drawers' sets."""
# fmt: off
HELD_OUT = (
    "penguin", "turtle", "elephant", "butterfly", "octopus", "horse", "banana", "pineapple", "carrot", "pizza",
    "doughnut", "cheese", "rocket", "bicycle", "tent", "key", "guitar", "umbrella", "anchor", "trophy", "cactus",
    "mushroom", "snowflake", "crown",
)
# fmt: on
"""Kinds of no training scene: neither the adapters nor the vision transformer saw their pictures in training."""
SEEN = tuple(word for word in KINDS if word not in HELD_OUT)
"""The other kinds, in the table's order."""
