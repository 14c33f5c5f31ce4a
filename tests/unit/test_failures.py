"""Each way in which a call can fail has one reason."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from evaluator.feedback import Reason
from evaluator.models.failures import failure_of_answer, failure_of_exception, retry_after

NOON = datetime(2026, 11, 6, 12, tzinfo=UTC)


def body(message: str = "", **error: object) -> str:
    return json.dumps({"error": {"message": message, **error}})


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (429, body("Rate limit reached", code="rate_limit_exceeded"), Reason.RATE_LIMITED),
        (429, body("You exceeded your current quota", code="insufficient_quota"), Reason.MISCONFIGURED),
        (429, body("Too many tokens per minute; see the billing page"), Reason.RATE_LIMITED),
        (500, body("maximum context length of the cache"), Reason.UNAVAILABLE),
        (502, "<html>Bad gateway</html>", Reason.UNAVAILABLE),
        (503, "", Reason.UNAVAILABLE),
        (529, body("Overloaded", type="overloaded_error"), Reason.UNAVAILABLE),
        (401, body("Incorrect API key provided: sk-1", code="invalid_api_key"), Reason.AUTHENTICATION),
        (403, "", Reason.AUTHENTICATION),
        (402, body("Insufficient Balance"), Reason.MISCONFIGURED),
        (404, body("The model `x` does not exist", code="model_not_found"), Reason.MISCONFIGURED),
        (404, "404 page not found", Reason.MISCONFIGURED),
        (400, body("Invalid type for 'messages'"), Reason.MISCONFIGURED),
        (422, json.dumps({"detail": [{"msg": "field required"}]}), Reason.MISCONFIGURED),
        (400, body("x", code="context_length_exceeded"), Reason.CONTEXT_OVERFLOW),
        (400, body("prompt is too long: 210000 tokens > 200000 maximum"), Reason.CONTEXT_OVERFLOW),
        (400, body("This model's maximum context length is 8192 tokens."), Reason.CONTEXT_OVERFLOW),
        (400, body("request exceeds the available context size", type="exceed_context_size_error"), Reason.CONTEXT_OVERFLOW),
        (400, body("The input token count (9) exceeds the maximum number of tokens"), Reason.CONTEXT_OVERFLOW),
        (413, "", Reason.CONTEXT_OVERFLOW),
        (400, body("filtered", code="content_filter"), Reason.CONTENT_FILTER),
        (400, body("x", innererror={"code": "ResponsibleAIPolicyViolation"}, code="content_filter"), Reason.CONTENT_FILTER),
        (408, "", Reason.TIMEOUT),
        (307, "", Reason.MISCONFIGURED),
        (200, body("upstream failed", code=502), Reason.UNAVAILABLE),
        (200, body("Rate limited", code=429), Reason.RATE_LIMITED),
        (200, body("No auth", code="401"), Reason.AUTHENTICATION),
        (200, json.dumps({"error": "model is loading"}), Reason.UNAVAILABLE),
        (200, json.dumps([{"error": {"code": 400, "message": "prompt is too long"}}]), Reason.CONTEXT_OVERFLOW),
        (200, json.dumps({"object": "error", "message": "maximum context length is 9"}), Reason.CONTEXT_OVERFLOW),
    ],
)  # fmt: skip
def test_an_answer_has_its_reason(status: int, answer: str, reason: Reason) -> None:
    assert failure_of_answer(status, {}, answer, NOON).reason is reason


def test_a_detail_names_codes_and_never_what_the_provider_repeated() -> None:
    said = body(
        "You sent: my card is 4111 and my key is sk-1", type="invalid_request_error", param="messages"
    )

    failure = failure_of_answer(400, {}, said, NOON)

    assert failure.detail == "HTTP 400 (invalid_request_error, messages): the provider rejected the request"
    assert "4111" not in str(failure)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), Reason.TIMEOUT),
        (ConnectionRefusedError(), Reason.UNAVAILABLE),
        (ConnectionResetError(), Reason.UNAVAILABLE),
        (OSError("http://user:password@host"), Reason.UNAVAILABLE),
    ],
)
def test_a_broken_connection_has_its_reason(error: Exception, reason: Reason) -> None:
    failure = failure_of_exception(error)

    assert failure.reason is reason
    assert "password" not in failure.detail


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ({"Retry-After": "2"}, timedelta(seconds=2)),
        ({"retry-after": "0.5"}, timedelta(seconds=0.5)),
        ({"retry-after-ms": "250"}, timedelta(milliseconds=250)),
        ({"Retry-After": "Fri, 06 Nov 2026 12:00:30 GMT"}, timedelta(seconds=30)),
        ({"Retry-After": "Fri, 06 Nov 2026 11:00:00 GMT"}, timedelta()),
        ({"Retry-After": "-3"}, timedelta()),
        ({"Retry-After": "999999"}, timedelta(hours=1)),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_a_pause_that_a_provider_asks_for_is_understood_and_bounded(
    value: dict[str, str], wait: timedelta | None
) -> None:
    assert retry_after(value, NOON) == wait


@pytest.mark.parametrize("code", ["²", "9" * 5_000, -1, True, 10**14, "5O0", ["x"], {}])
def test_a_code_that_is_no_status_is_not_taken_for_one(code: object) -> None:
    failure = failure_of_answer(200, {}, body("It broke.", code=code), NOON)

    assert failure.reason is Reason.UNAVAILABLE
    assert failure.detail.startswith("HTTP 200 with an error in it")


def test_what_a_provider_calls_its_error_is_one_word_or_not_repeated() -> None:
    failure = failure_of_answer(500, {}, body(code="broken\n", type="server_error"), NOON)

    assert failure.detail == "HTTP 500 (server_error): the provider failed"


@pytest.mark.parametrize(
    "said",
    ["nan", "inf", "1e400", "soon", "²", "9" * 5_000, "Mon, 01 Jan 2026 00:00:00 +99999999999999", "Mon, 99 Jan 2026"],
)  # fmt: skip
def test_a_pause_that_is_no_time_is_none(said: str) -> None:
    assert retry_after({"Retry-After": said}, NOON) is None
