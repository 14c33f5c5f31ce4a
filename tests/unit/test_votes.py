"""How votes become a result: an error is no vote, and a vote that failed is never outvoted in silence."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluator.feedback import Feedback, Outcome, Reason, Scored, Unscored
from evaluator.guidelines.definitions import Categories, JudgeDefinition, NumberRange
from evaluator.scorers.panel import Vote, decided

JUDGE = JudgeDefinition(name="a", guidelines=("b",), models=("x/1", "x/2", "x/3"))
TONES = replace(JUDGE, values=Categories(values=("warm", "neutral", "cold")))
STARS = replace(JUDGE, values=NumberRange(min=1, max=5))
FAILURES = {"down": Reason.UNAVAILABLE, "refused": Reason.REFUSED, "key": Reason.AUTHENTICATION}


def a_vote(said: object, number: int = 1) -> Vote:
    outcome: Outcome
    if said in FAILURES:
        outcome = Unscored(reason=FAILURES[str(said)], detail="no answer")
    elif isinstance(said, int | float):
        outcome = Feedback(value=said, passed=said >= 3, rationale=f"It is {said}.")
    else:
        passed = {"yes": True, "warm": True, "no": False, "cold": False}.get(str(said))
        outcome = Feedback(value=str(said), passed=passed, rationale=f"It is {said}.")
    return Vote(model=f"x/{number}", scored=Scored(outcome=outcome))


def result(judge: JudgeDefinition, *said: object) -> object:
    """The value, or the reason why there is none."""
    outcome = decided([a_vote(one, number) for number, one in enumerate(said, 1)], judge)
    return outcome.value if isinstance(outcome, Feedback) else outcome.reason


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("yes", "yes", "no"), "yes"),
        (("no", "yes", "no"), "no"),
        (("yes", "yes", "down"), "yes"),
        (("yes", "no", "down"), Reason.UNAVAILABLE),
        (("yes", "no", "refused"), Reason.UNDECIDED),
        (("yes", "no", "unsure"), Reason.UNDECIDED),
        (("yes", "unsure", "unsure"), Reason.UNDECIDED),
        (("yes", "no"), Reason.UNDECIDED),
        (("down", "down", "yes"), Reason.UNAVAILABLE),
        (("refused", "refused", "refused"), Reason.REFUSED),
        (("refused", "down", "yes"), Reason.UNAVAILABLE),
        (("down", "key", "yes"), Reason.AUTHENTICATION),
        (("yes",), "yes"),
        (("unsure",), Reason.UNDECIDED),
        (("down",), Reason.UNAVAILABLE),
    ],
)
def test_a_majority_is_more_than_half_of_all_models(said: tuple[str, ...], expected: object) -> None:
    assert result(JUDGE, *said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("yes", "yes", "yes"), "yes"),
        (("no", "no", "no"), "no"),
        (("yes", "yes", "no"), Reason.UNDECIDED),
        (("yes", "yes", "down"), Reason.UNAVAILABLE),
        (("yes", "no", "down"), Reason.UNDECIDED),
    ],
)
def test_unanimous_is_all_of_them(said: tuple[str, ...], expected: object) -> None:
    assert result(replace(JUDGE, decide="unanimous"), *said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (("yes", "yes", "yes"), "yes"),
        (("yes", "no", "yes"), "no"),
        (("no", "down", "down"), "no"),
        (("yes", "yes", "down"), Reason.UNAVAILABLE),
        (("yes", "yes", "unsure"), Reason.UNDECIDED),
    ],
)
def test_one_fail_is_enough_and_a_pass_takes_all_votes(said: tuple[str, ...], expected: object) -> None:
    assert result(replace(JUDGE, decide="any_fail"), *said) == expected


@pytest.mark.parametrize(
    ("judge", "said", "expected"),
    [
        (TONES, ("warm", "cold", "cold"), "cold"),
        (TONES, ("warm", "neutral", "cold"), Reason.UNDECIDED),
        (replace(TONES, decide="any_fail"), ("warm", "neutral", "cold"), "cold"),
        (STARS, (1, 4, 5), 4),
        (STARS, (2, 5), 3.5),
        (STARS, (2, 5, "down"), 3.5),
        (STARS, (2, "down", "down"), Reason.UNAVAILABLE),
        (replace(STARS, decide="unanimous"), (4, 4, 4), 4),
        (replace(STARS, decide="unanimous"), (4, 4, 5), Reason.UNDECIDED),
        (replace(STARS, decide="any_fail"), (1, 2, 5), 1),
        (replace(STARS, decide="any_fail"), (3, 4, 5), 4),
    ],
)
def test_words_are_counted_and_numbers_have_a_median(
    judge: JudgeDefinition, said: tuple[object, ...], expected: object
) -> None:
    assert result(judge, *said) == expected


def test_a_median_passes_by_its_own_value() -> None:
    outcome = decided([a_vote(2, 1), a_vote(5, 2)], STARS, lambda value: float(value) > 3)

    assert outcome == Feedback(value=3.5, passed=True, rationale="3.5 is the median of 2, 5. It is 2.")


def test_the_rationale_says_how_many_agree() -> None:
    outcome = decided([a_vote("no", 1), a_vote("yes", 2), a_vote("no", 3)], JUDGE)

    assert isinstance(outcome, Feedback)
    assert outcome.rationale == "2 of 3 models say no. It is no."


@given(
    st.lists(st.sampled_from(["yes", "no", "unsure", "down", "refused"]), min_size=2, max_size=4),
    st.sampled_from(["majority", "unanimous", "any_fail"]),
)
def test_the_order_of_the_votes_does_not_matter(said: list[str], decide: str) -> None:
    judge = replace(JUDGE, decide=decide)  # type: ignore[arg-type]

    assert len({result(judge, *order) for order in permutations(said)}) == 1


@given(
    st.lists(st.sampled_from(["yes", "no", "unsure", "down"]), min_size=1, max_size=5),
    st.sampled_from(["majority", "unanimous", "any_fail"]),
    st.data(),
)
def test_no_vote_that_failed_could_have_turned_a_result(
    said: list[str], decide: str, data: st.DataObject
) -> None:
    judge = replace(JUDGE, decide=decide)  # type: ignore[arg-type]
    found = result(judge, *said)
    filled = [data.draw(st.sampled_from(["yes", "no"])) if one == "down" else one for one in said]

    if found in ("yes", "no"):
        assert result(judge, *filled) == found
