"""What a log line says, and what is taken out of it."""

import io
import json
import logging

import pytest

from evaluator.redaction import Redactor
from evaluator.telemetry.logs import JsonFormatter, TextFormatter

REDACT = Redactor(["email", "secret"]).redact


@pytest.fixture(params=[TextFormatter, JsonFormatter])
def written(request: pytest.FixtureRequest) -> io.StringIO:
    """What a logger of its own writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(request.param(REDACT))
    logger = logging.getLogger("tests.a_logger")
    logger.handlers, logger.propagate = [handler], False
    return stream


def test_what_must_not_leave_is_taken_out_of_sentence_fields_and_exceptions(written: io.StringIO) -> None:
    logger = logging.getLogger("tests.a_logger")
    try:
        raise ValueError("the row of ann@x.org")
    except ValueError:
        logger.exception("sent to bob@x.org", extra={"cause": "eve@x.org", "all": ["dan@x.org"], "rows": 3})

    said = written.getvalue()
    assert "@" not in said
    assert said.count("[EMAIL_1]") >= 4
    assert "rows" in said


def test_a_line_of_json_stays_json(written: io.StringIO) -> None:
    logging.getLogger("tests.a_logger").warning(
        "a sentence", extra={"cause": 'password: "hunter22"', "rows": 3}
    )

    said = written.getvalue()
    assert "hunter22" not in said
    if said.startswith("{"):
        line = json.loads(said)
        assert (line["cause"], line["rows"]) == ('password: "[SECRET_1]"', 3)
