"""A result's id in MLflow: the same for the same result, another for every other."""

from dataclasses import replace
from datetime import UTC, datetime

from evaluator.feedback import Assessment, Feedback, Reason, Scored, Target, Unscored
from evaluator.sinks.mlflow import assessment_id

RESULT = Assessment(
    seq=1,
    target=Target(type="TRACE", target_id="a", trace_id="a"),
    name="polite",
    version="v1",
    revision=0,
    source_type="LLM_JUDGE",
    scored=Scored(outcome=Feedback(value="yes", passed=True, rationale="it is")),
    run_id="run",
    at=datetime(2026, 11, 20, tzinfo=UTC),
)


def test_the_same_result_has_the_same_id_wherever_it_is_published_from() -> None:
    again = replace(RESULT, seq=9, run_id="another", at=datetime(2026, 11, 21, tzinfo=UTC))

    assert assessment_id(again) == assessment_id(RESULT)


def test_target_scorer_version_and_revision_make_another() -> None:
    others = [
        replace(RESULT, target=Target(type="TRACE", target_id="b", trace_id="b")),
        replace(RESULT, name="brief"),
        replace(RESULT, version="v2"),
        replace(RESULT, revision=1),
    ]

    assert len({assessment_id(one) for one in (RESULT, *others)}) == 5


def test_a_result_that_a_retry_brought_is_not_taken_for_the_lack_of_one() -> None:
    lack = replace(RESULT, scored=Scored(outcome=Unscored(reason=Reason.REFUSED, detail="it would not")))

    assert assessment_id(lack) != assessment_id(RESULT)


def test_a_session_that_begins_anew_on_a_later_trace_is_another() -> None:
    begun, anew = (Target(type="SESSION", target_id="s", trace_id=one, session_id="s") for one in "ab")

    assert assessment_id(replace(RESULT, target=begun)) != assessment_id(replace(RESULT, target=anew))
