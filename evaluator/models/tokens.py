"""How many tokens a text is, about, for estimates: counted where a tokenizer is at hand, else by its length."""

import importlib.util
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

BYTES_PER_TOKEN = 4.5
"""Of English prose and JSON, with the tokenizers of today's models."""
COUNTED = 2_000_000
"""Bytes that are really counted, some seconds of work; what comes after is taken to be alike."""
ENCODING, FILE = "o200k_base", "fb374d419588a4632f3f557e76b4b70aebbca790"
"""That of OpenAI's models, and the name under which litellm ships it for tiktoken."""


class TokenCounter:
    """Counts the tokens of texts; of very many texts, those of the first, and goes by their density from then on."""

    def __init__(self) -> None:
        self._bytes = 0
        self._tokens = 0

    def count(self, texts: Iterable[str]) -> int:
        contents = [text.encode("utf-8", "replace") for text in texts]
        size = sum(map(len, contents))
        counted = tokenizer()
        if counted is None:
            return round(size / BYTES_PER_TOKEN)
        if self._bytes >= COUNTED:
            return round(size * self._tokens / self._bytes)
        tokens = sum(counted(content.decode()) for content in contents)
        self._bytes += size
        self._tokens += tokens
        return tokens


@cache
def tokenizer() -> Callable[[str], int] | None:
    """Counts a text's tokens as OpenAI's models do; None where that would need the network."""
    spec = importlib.util.find_spec("litellm")
    places = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(places[0]) / "litellm_core_utils" / "tokenizers" if places else None
    if folder is None or not (folder / FILE).is_file() or importlib.util.find_spec("tiktoken") is None:
        return None
    import tiktoken

    known = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        encoding = tiktoken.get_encoding(ENCODING)
    finally:
        if known is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = known
    return lambda text: len(encoding.encode_ordinary(text))
