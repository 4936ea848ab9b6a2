"""Languages are told apart by a paragraph, and mostly by a short prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from pressroom.text import language_of

PROMPTS = [
    line.split("\t") for line in (Path(__file__).parent / "short_prompts.tsv").read_text(encoding="utf-8").splitlines()
]
RIGHTS = {
    "en": "Everyone has the right to education. Education shall be free, at least in the elementary stages.",
    "de": "Jeder hat das Recht auf Bildung. Die Bildung ist unentgeltlich, zum mindesten der Grundschulunterricht.",
    "fr": "Toute personne a droit à l'éducation. L'éducation doit être gratuite, au moins pour l'essentiel.",
    "es": "Toda persona tiene derecho a la educación. La educación debe ser gratuita, al menos en lo elemental.",
    "it": "Ogni individuo ha diritto all'istruzione. L'istruzione deve essere gratuita per le classi elementari.",
    "pt": "Toda a pessoa tem direito à educação. A educação deve ser gratuita, pelo menos a do ensino elementar.",
    "cs": "Každý má právo na vzdělání. Vzdělání nechť je bezplatné, alespoň v začátečních a základních stupních.",
    "sk": "Každý má právo na vzdelanie. Vzdelanie nech je bezplatné, aspoň v začiatočných a základných stupňoch.",
    "sl": "Vsakdo ima pravico do izobraževanja. Šolanje je brezplačno vsaj na začetni in osnovni stopnji.",
    "ru": "Каждый человек имеет право на образование. Образование должно быть бесплатным.",
    "uk": "Кожна людина має право на освіту. Освіта повинна бути безплатною.",
    "ar": "لكل شخص الحق في التعلم. ويجب أن يكون التعليم في مراحله الأولى والأساسية على الأقل بالمجان.",
    "fa": "هر کس حق دارد که از آموزش و پرورش بهره‌مند شود. آموزش و پرورش باید مجانی باشد.",
    "hi": "प्रत्येक व्यक्ति को शिक्षा का अधिकार है। शिक्षा कम से कम प्रारम्भिक अवस्थाओं में निःशुल्क होगी।",
    "zh": "人人都有受教育的权利，教育应当免费。",
    "ja": "すべて人は、教育を受ける権利を有する。教育は、無償でなければならない。",
    "ko": "모든 사람은 교육을 받을 권리를 가진다.",
    "bn": "প্রত্যেকেরই শিক্ষালাভের অধিকার রয়েছে।",
}


@pytest.mark.parametrize("language", RIGHTS)
def test_a_paragraph(language: str) -> None:
    assert language_of(RIGHTS[language]) == language


def test_short_prompts() -> None:
    wrong = [(tag, language_of(prompt), prompt) for tag, prompt in PROMPTS if language_of(prompt) != tag]
    # Danish and Norwegian make most of the mistakes.
    assert len(PROMPTS) > 250
    assert len(wrong) / len(PROMPTS) < 0.04, wrong


@pytest.mark.parametrize("text", ["", " ", "12345", "…!?", "1 + 1 = 2", "😀😀", "\ud800", "\x00", "a", "ok"])
def test_no_words_are_no_language(text: str) -> None:
    assert language_of(text) == "und"


@pytest.mark.parametrize(
    "text", ["hello", "ping", "Test 123", "OK danke", "main.py", "Привет", "नमस्ते", "سلام", "foo bar"]
)
def test_a_few_letters_are_no_language(text: str) -> None:
    assert language_of(text) == "und"


def test_what_is_told_of_a_few_words_is_mostly_right() -> None:
    pieces = [(tag, " ".join(prompt.split()[:2])) for tag, prompt in PROMPTS]
    told = [(tag, found) for tag, piece in pieces if (found := language_of(piece)) != "und"]
    assert len(told) > len(pieces) / 2
    assert sum(tag == found for tag, found in told) / len(told) > 0.85


def test_a_script_of_one_language_needs_no_more_letters() -> None:
    assert [language_of(text) for text in ("你好", "안녕", "שלום", "γεια")] == ["zh", "ko", "he", "el"]


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("请解释一下 Python 的 asyncio 是什么", "zh"),
        ("Pythonのasyncioについて説明してください", "ja"),
        ("Python asyncio에 대해 설명해 주세요", "ko"),
        ("PLEASE EXPLAIN HOW THIS WORKS", "en"),
        ("Bitte erkläre mir das: 12345 67890 12345 67890", "de"),
        ("Объясни, что делает async def main()", "ru"),
    ],
)
def test_words_of_another_script_do_not_decide(text: str, tag: str) -> None:
    assert language_of(text) == tag


def test_only_the_beginning_of_a_long_text_is_looked_at() -> None:
    assert language_of(RIGHTS["fr"] * 10 + RIGHTS["ru"] * 10_000) == "fr"
