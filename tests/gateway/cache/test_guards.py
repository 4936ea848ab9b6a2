"""Which words of two questions must be equal, however near their vectors are."""

from __future__ import annotations

import pytest

from pressroom.gateway.cache._guards import alike

#: Other questions, though the cosines of most with a sentence encoder (all-MiniLM-L6-v2) are above 0.9.
DIFFERENT = [
    ("Did Germany invade Poland?", "Did Poland invade Germany?"),
    ("Translate this from English to French: hello", "Translate this from French to English: hello"),
    ("How do I convert CSV to JSON?", "How do I convert JSON to CSV?"),
    ("Is it legal to record calls?", "Is it illegal to record calls?"),
    ("What is 15% of 80?", "What is 80% of 15?"),
    ("What happened in 1914?", "What happened in 1941?"),
    ("Version 1.10?", "Version 1.1?"),
    ("Do you ship to Canada?", "Do you ship from Canada?"),
    ("Which foods are safe during pregnancy?", "Which foods are not safe during pregnancy?"),
    ("Which foods are safe during pregnancy?", "Which foods aren't safe during pregnancy?"),
    ("Can I take ibuprofen with alcohol?", "Can I take ibuprofen without alcohol?"),
    ("What is the weather in Berlin today?", "What is the weather in Berlin tomorrow?"),
    ("When was Mozart born?", "Where was Mozart born?"),
    ("Show me the revenue of the first quarter", "Show me the revenue of the second quarter"),
    ("What should I eat before running?", "What should I eat after running?"),
    ("What does the flag -r of rm do?", "What does the flag -f of rm do?"),
    ("Is a < b?", "Is a > b?"),
    ("What is x + y?", "What is x - y?"),
    ("What is C?", "What is C++?"),
    ("What is C++?", "What is C#?"),
    ('Translate "good morning" into Spanish', 'Translate "good night" into Spanish'),
    ("What is the meaning of 'affect'?", "What is the meaning of 'effect'?"),
    ('Translate "the cat" into French', 'Translate "cat" into French'),
    ("Que veut dire « pain » ?", "Que veut dire « bain » ?"),
    ("Is IT safe?", "Is it safe?"),
    ("What are US laws?", "What are us laws?"),
    ("Comment activer le mode avion ?", "Comment désactiver le mode avion ?"),
    ("Wie schalte ich das Licht ein?", "Wie schalte ich das Licht aus?"),
    ("Darf ich hier parken?", "Darf ich hier nicht parken?"),
    ("你喜欢茶吗", "你不喜欢茶吗"),
    ("食べていい", "食べない"),
    ("Я могу войти?", "Я не могу войти?"),
    ("I am happy 😀", "I am happy 😡"),
    ("What are the pros of remote work?", "What are the cons of remote work?"),
    ("How do I enable it?", "How do I disable it?"),
    ("Who is the CEO of Apple?", "Who is the CFO of Apple?"),
    ("Can dogs eat grapes?", "Can cats eat grapes?"),
    ("Is it safe to mix bleach and vinegar?", "Is it safe to mix baking soda and vinegar?"),
]
#: One word more is one condition more: vectors of these are as near as those of equals, and only `same_words` helps.
NARROWER = [
    ("What is the population of York?", "What is the population of New York?"),
    ("Who is the president of France?", "Who is the former president of France?"),
    ("Which vaccines do children need?", "Which vaccines do small children need?"),
    ("Is it safe to eat fish?", "Is it safe to eat raw fish?"),
]
SAME = [
    ("How do I reset my password?", "How can I reset my password?"),
    ("How do I boil an egg?", "how to boil an egg"),
    ("What is the capital of France?", "what is the capital of france"),
    ("What is the capital of France?", "Tell me the capital of France."),
    ("What's the difference between TCP and UDP?", "What is the difference between TCP and UDP?"),
    ("Explain photosynthesis in simple terms.", "Hi, can you please explain photosynthesis in simple terms?"),
    ("Where is my order?", "I would like to know where my order is"),
    ("How long does delivery take?", "How long does the delivery take?"),
    ("Comment réinitialiser mon mot de passe ?", "Comment puis-je réinitialiser mon mot de passe ?"),
    ("Wie hoch ist der Berg?", "Bitte: wie hoch ist der Berg?"),
    ("WHAT IS SOCCER", "what is soccer"),
    ("How do I convert CSV to JSON?", "how to convert csv to json"),
    ("caf\u00e9 near me", "cafe\u0301 near me"),
    ("你喜欢茶吗？", "你喜欢茶吗"),
]


@pytest.mark.parametrize("pair", DIFFERENT)
def test_other_questions(pair: tuple[str, str]) -> None:
    for one, other in (pair, pair[::-1]):
        assert not alike(one, other, same_words=True)
        assert not alike(one, other, same_words=False)


@pytest.mark.parametrize("pair", NARROWER)
def test_narrower_questions(pair: tuple[str, str]) -> None:
    for one, other in (pair, pair[::-1]):
        assert not alike(one, other, same_words=True)
        assert alike(one, other, same_words=False)


@pytest.mark.parametrize("pair", SAME)
def test_the_same_question(pair: tuple[str, str]) -> None:
    for one, other in (pair, pair[::-1], pair[:1] * 2):
        assert alike(one, other, same_words=True)
        assert alike(one, other, same_words=False)


@pytest.mark.parametrize(
    "text", ["please " * 140, "'" * 1_000, '"a' * 500, "can you " * 120, "\u0301" * 1_000, " \n" * 500]
)
def test_no_text_takes_long(text: str) -> None:
    """Patterns here are linear; a text of the longest kind that is compared returns at once."""
    assert alike(text, text, same_words=True)
    assert alike(text, text, same_words=False)
