"""Which language a text is in, told by its script or by the words that every text of a language is full of.

Honest about the rest: a text that is short, mixed or of another language has no answer. For a heuristic over
a dozen languages of business a library of models (tens of megabytes) would be out of proportion.
"""

import re
import unicodedata
from collections import Counter

FEWEST_WORDS = 4
"""Fewer words than these tell nothing."""
_CERTAIN = 0.6
"""The share of the hits that the first language needs."""

_WORDS = {
    "en": "the and of to in is that for it was on are with as be this have from or not you your we can will has which their",
    "de": "der die das und ist nicht ein eine zu den von mit für auf dem des sich auch wird sind im wir sie es werden bei als oder",
    "fr": "le la les de des un en à et est une dans pour que qui sur pas du vous nous avec ce cette sont au par plus ou votre aux ne il",
    "es": "el la los las y de que en un una es por con para no se del al lo su como más pero sus este está son usted muy",
    "it": "il lo gli di che è e un una per non con del della sono nel alla dei le si come più ma anche questo questa ha suo",
    "pt": "o a os as e de que em um uma é por com para não se do da no na dos das mais como mas seu sua está são você",
    "nl": "de het een en van is dat niet in op te zijn voor met die aan er om als ook maar bij naar wordt uw wij deze heeft",
    "pl": "i w na z do się nie jest to że o jak za od po ale dla czy przez są tym być oraz lub jego może tego które",
    "sv": "och att det som en är på för av med den till inte har i om ett men var jag vi kan från eller ska så detta din",
    "tr": "ve bir bu için ile da de çok olarak daha gibi en ne var olan değil kadar sonra ama veya her şey mı mi olduğu size",
}
_STOP_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "GREEK": "el",
    "THAI": "th",
}
_UKRAINIAN = frozenset("іїєґ")
_WORD = re.compile(r"[^\W\d_]+")
_READ = 20_000

LANGUAGES = tuple(sorted({*_STOP_WORDS, *_SCRIPTS.values(), "uk"}))
"""The languages that are told apart, as ISO 639-1 codes; `ru` stands for Cyrillic without Ukrainian letters."""


def language_of(text: str) -> str | None:
    """The language of a text (its first 20,000 characters), or None where it cannot be told."""
    text = text[:_READ].lower()
    scripts = Counter(
        unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
        for letter in text
        if letter.isalpha()
    )
    if not scripts:
        return None
    script, letters = scripts.most_common(1)[0]
    if (scripts["HIRAGANA"] + scripts["KATAKANA"]) * 10 > scripts.total():
        return "ja"
    if script in _SCRIPTS:
        language = _SCRIPTS[script]
        if letters < 0.5 * scripts.total() or scripts.total() < FEWEST_WORDS:
            return None
        return "uk" if language == "ru" and _UKRAINIAN & set(text) else language
    return _latin(_WORD.findall(text)) if script == "LATIN" else None


def _latin(words: list[str]) -> str | None:
    """The language whose frequent words the text holds; a word of several counts for each of them."""
    if len(words) < FEWEST_WORDS:
        return None
    hits = Counter(
        language for word in words for language, frequent in _STOP_WORDS.items() if word in frequent
    )
    if not hits:
        return None
    ranked = hits.most_common(2)
    first, count = ranked[0]
    second = ranked[1][1] if len(ranked) > 1 else 0
    enough = count >= 2 and count * 12 >= len(words)
    return first if enough and count * (1 - _CERTAIN) > second * _CERTAIN else None
