"""The fixed prompts that engines are compared on: short, different in kind, and the same for ever under one version."""

from __future__ import annotations

#: Changes with the prompts: distributions that were kept under another version are not comparable.
PROMPTS_VERSION = 1

_CODE = '''def median(values: list[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return'''
_TABLE = """name,city,age
Ida,Bergen,34
Noor,Utrecht,29
Tomas,Brno,"""
_LETTER = (
    "Dear Ms Okafor,\n\nthank you for the two boxes that came on Tuesday. One of the lamps was broken, and the other "
    "three work well. We have hung them over the long table in the reading room, where it used to be too dark to read "
    "after four in the afternoon. The children noticed at once. Could you send us another lamp of the same kind, and "
    "tell us what we owe you for it? The address is as before, but please ring at the side door, because the front is "
    "being painted until the end of the month.\n\nWith kind"
)
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of Norway?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
_CHAT_TURNS = (
    "<|im_start|>user\nName a fruit that is red.<|im_end|>\n"
    "<|im_start|>assistant\nAn apple.<|im_end|>\n"
    "<|im_start|>user\nAnd one that is yellow?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# A list to look something up in: some 330 tokens, so that a fault that grows with distance is seen.
_GUESTS = """Guests of the house, in the order of their coming:
Anders, room 100, from Lima
Birgit, room 137, from Delhi
Carmen, room 174, from Lisbon
Dmitri, room 211, from Perth
Elena, room 248, from Leeds
Farid, room 285, from Riga
Greta, room 322, from Minsk
Hassan, room 359, from Oslo
Ingrid, room 396, from Quito
Jorge, room 433, from Kyoto
Katrin, room 470, from Turin
Luca, room 507, from Sofia
Marta, room 544, from Cairo
Nadia, room 581, from Accra
Oskar, room 618, from Nice
Petra, room 655, from Osaka
Quentin, room 692, from Tunis
Rosa, room 729, from Lima
Stefan, room 766, from Delhi
Tamar, room 803, from Lisbon
Ulrich, room 840, from Perth
Vera, room 877, from Leeds
Walter, room 914, from Riga
Xenia, room 951, from Minsk

The same guests, by name:
Carmen, from"""

PROMPTS: tuple[str, ...] = (
    "The river rises in the hills above the town and flows",
    "In 1969, three astronauts travelled to the",
    "She opened the door, looked at the empty room and",
    "Water boils at one hundred degrees",
    "2, 4, 8, 16, 32,",
    "17 + 25 =",
    "import json\n\nwith open('settings.json') as file:\n    settings =",
    _CODE,
    "SELECT name, price FROM products WHERE price <",
    '{"id": 7, "name": "lamp", "colours": ["red", "green",',
    _TABLE,
    "Der Zug nach Hamburg fährt heute von Gleis sieben ab, weil",
    "La bibliothèque est ouverte du lundi au",
    "今日は天気がいいので、",
    _LETTER,
    _CHAT,
    _CHAT_TURNS,
    _GUESTS,
)
