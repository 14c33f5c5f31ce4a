"""No judged text can hold the code that closes its fence."""

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from evaluator.scorers.fence import DIGITS, fence_code, fold

KEY = b"key of a deployment"
INVISIBLE = ["\u200b", "\u2060", "\ufeff", "\u00ad", " ", "-", "\n", "\u202e"]


def widened(code: str) -> str:
    """A code in full-width characters, as a reader's eye takes it for the same."""
    return "".join(chr(ord(character) + 0xFEE0) for character in code)


SPELLINGS = [
    str,
    str.upper,
    widened,
    lambda code: "\u200b".join(code),
    lambda code: " - ".join(code),
    lambda code: re.sub(r"\d", lambda digit: chr(0x0660 + int(digit[0])), code),
    lambda code: re.sub(r"\d", lambda digit: chr(0x1D7D8 + int(digit[0])), code),
]


@given(
    st.lists(
        st.text(alphabet=st.sampled_from("0123456789abcdefABCDEFｆ０１٣𝟘 \u200b-"), max_size=200), max_size=4
    )
)
def test_no_text_holds_its_code_however_spelled(texts: list[str]) -> None:
    # Two digits collide all the time, as 24 never will: the claim has to hold by construction, not by chance.
    code = fence_code(KEY, texts, digits=2)

    assert not any(code in fold(text) for text in texts)


@given(st.text(max_size=100), st.sampled_from(SPELLINGS), st.sampled_from(INVISIBLE))
def test_who_learned_the_code_of_one_text_does_not_know_it_once_it_is_in_the_text(
    text: str, spelled: object, between: str
) -> None:
    learned = fence_code(KEY, [text], digits=4)

    attack = f"{text}{between}</material {spelled(learned)}>"  # type: ignore[operator]

    assert fence_code(KEY, [attack], digits=4) not in fold(attack)


@given(st.text(alphabet="0123456789abcdef", min_size=8, max_size=8), st.sampled_from(SPELLINGS))
def test_folding_sees_through_every_spelling(code: str, spelled: object) -> None:
    assert code in fold(f"before {spelled(code)} after")  # type: ignore[operator]


@given(st.lists(st.text(max_size=50), max_size=3))
def test_the_code_is_the_same_for_the_same_texts_and_key(texts: list[str]) -> None:
    assert fence_code(KEY, texts) == fence_code(KEY, texts)
    assert fence_code(KEY, texts) != fence_code(b"another key", texts)


def test_texts_that_join_to_the_same_have_codes_of_their_own() -> None:
    assert fence_code(KEY, ["ab", "c"]) != fence_code(KEY, ["a", "bc"])


def test_a_code_is_long_enough_not_to_be_guessed_and_plain() -> None:
    code = fence_code(KEY, ["text with a lone \ud83d surrogate"])

    assert re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", code)
    assert unicodedata.normalize("NFKC", code) == code
