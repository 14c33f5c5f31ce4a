"""The code that fences judged text off: nobody who wrote the text can know it, and no text holds it."""

import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterable
from itertools import count

DIGITS = 24
"""Of hexadecimal: 96 bits, which nobody guesses."""

_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_NOT_ALPHANUMERIC_ASCII = bytes(byte for byte in range(128) if not chr(byte).isalnum())
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")


def fence_code(key: bytes, texts: Iterable[str], digits: int = DIGITS) -> str:
    """A code for these texts: the same for the same texts and key, so that a prompt stays the same for caches.

    It is an HMAC of the texts. Should one of them hold it all the same, however spelled (in another case or width,
    with invisible characters between), the next of the series is taken, so that none ever does.
    """
    texts = list(texts)
    message = b"".join(
        b"%d:%b" % (len(content), content)
        for content in (text.encode("utf-8", "surrogatepass") for text in texts)
    )
    folded = [fold(text) for text in texts]
    for number in count():
        code = hmac.new(key, b"%d:%b" % (number, message), hashlib.sha256).hexdigest()[:digits]
        if not any(code in text for text in folded):
            return code
    raise AssertionError("the series does not end")


def fold(text: str) -> str:
    """The letters and digits of a text with their case, width and writing system taken away."""
    if text.isascii():  # Most are, and the way below takes several times as long.
        return text.lower().encode().translate(None, _NOT_ALPHANUMERIC_ASCII).decode()
    text = unicodedata.normalize("NFKC", text)
    text = _FOREIGN_DIGIT.sub(lambda found: str(unicodedata.digit(found[0], "")), text)
    return _NOT_ALPHANUMERIC.sub("", text.casefold())
