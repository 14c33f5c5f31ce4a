"""Why a call gave no completion: what a provider answered or a connection did, as a Reason. The one place.

What is done about each, and where (a try is a request to the provider; an attempt is all tries of one tick):

reason            what it was                        in the tick                 afterwards
----------------  ---------------------------------  --------------------------  -----------------------------------
UNAVAILABLE       5xx, 529, broken or unreadable     up to 4 tries, with         unscored; next tick, then 15 min,
                  answers, an error in a 200         growing random distance     1 h, 6 h, 24 h; then final
TIMEOUT           no answer within judge.timeout     the same                    the same
RATE_LIMITED      429                                up to 4 tries; all calls    the same
                                                     share the provider's pause
BAD_REPLY         nothing readable, repair included  one repair call             the same
ENDPOINT_DOWN     many failures in a row, a pause    not asked: left alone, then deferred: no attempt, next tick
                  over a minute, nothing granted     one plain question first
                  for two, no turn in time
BUDGET, PAUSED    judge.budget; `evaluator pause`    not asked                   deferred: no attempt, next tick
CONTEXT_OVERFLOW  the prompt does not fit            one try                     unscored, final until `retry`
CONTENT_FILTER    the provider's filter              one try                     unscored, final until `retry`
REFUSED           the model's own words, or this     one try; a rejected prompt  unscored, final until `retry`
                  prompt alone is rejected           is told apart by a plain one
UNDECIDED         a panel's votes decide nothing     each model is asked once    unscored, final until `retry`
                  and no model is left to ask
AUTHENTICATION,   401, 403, 404, 400, redirects,     a plain question tells      traces that cost nothing yet stay as
MISCONFIGURED     certificates, no credit            whether it is the prompt;   they are, else deferred: no attempt;
                                                     if not, nobody asks for     the command exits 1 and says what to
                                                     a minute                    mend
                                                     401: never the prompt's

The tries are made in `client`, the pauses in `limiter` and `pace`, leaving alone in `breaker`, the distances between
attempts in `decisions`; the count of attempts stands in the ledger and so survives a restart.
"""

import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from evaluator.feedback import Reason
from evaluator.models.endpoint import ModelFailure
from evaluator.models.quota import limits_of

LONGEST_RETRY_AFTER = timedelta(hours=1)

WORDS: tuple[tuple[re.Pattern[str], Reason, str], ...] = (
    # What a provider says outranks its status: most of these come as 400 from one and 413, 429 or 200 from another.
    (
        re.compile(
            r"context_length_exceeded|exceed_context_size|context_window_exceeded|string_above_max_length"
            r"|maximum context length|context (length|window|size)|prompt is too long|input is too long"
            r"|too many (input )?tokens|exceeds? the (maximum|max|model'?s?) .{0,40}tokens"
            r"|input token count .{0,40}exceeds|reduce the length",
            re.IGNORECASE,
        ),
        Reason.CONTEXT_OVERFLOW,
        "the prompt does not fit the model's context window",
    ),
    (
        re.compile(
            r"content_filter|content_policy|content management policy|ResponsibleAIPolicy|moderation_blocked"
            r"|data_inspection_failed|flagged (for|by|as)",
            re.IGNORECASE,
        ),
        Reason.CONTENT_FILTER,
        "the provider's content filter stopped the call",
    ),
    (
        re.compile(
            r"insufficient_quota|billing|credit balance|insufficient (balance|credit|funds)", re.IGNORECASE
        ),
        Reason.MISCONFIGURED,
        "the account has no credit or quota left",
    ),
    (
        re.compile(
            r"model_not_found|DeploymentNotFound|unknown_model|model.{0,80}(does not exist|not found|not available)"
            r"|(unknown|no such|invalid) model",
            re.IGNORECASE,
        ),
        Reason.MISCONFIGURED,
        "the provider does not know the model",
    ),
    (
        re.compile(
            r"invalid_api_key|incorrect api key|authentication_error|invalid x-api-key", re.IGNORECASE
        ),
        Reason.AUTHENTICATION,
        "the provider does not accept the key",
    ),
)

STATUSES: dict[int, tuple[Reason, str]] = {
    400: (Reason.MISCONFIGURED, "the provider rejected the request"),
    401: (Reason.AUTHENTICATION, "the provider does not accept the key"),
    402: (Reason.MISCONFIGURED, "the account has no credit left"),
    403: (Reason.AUTHENTICATION, "the key may not use this model"),
    404: (Reason.MISCONFIGURED, "there is no such model or no such address"),
    405: (Reason.MISCONFIGURED, "the address takes no chat completions"),
    408: (Reason.TIMEOUT, "the provider gave up waiting"),
    409: (Reason.UNAVAILABLE, "the provider is busy with a conflicting request"),
    413: (Reason.CONTEXT_OVERFLOW, "the request is larger than the provider takes"),
    422: (Reason.MISCONFIGURED, "the provider rejected the request"),
    425: (Reason.UNAVAILABLE, "the provider asks to come later"),
    429: (Reason.RATE_LIMITED, "the provider limits the rate"),
    529: (Reason.UNAVAILABLE, "the provider is overloaded"),
}

LITELLM: dict[str, tuple[Reason, str]] = {
    # litellm's exceptions by class name, so that it need not be imported; the most specific come first in their MRO.
    "ContextWindowExceededError": (
        Reason.CONTEXT_OVERFLOW,
        "the prompt does not fit the model's context window",
    ),
    "ContentPolicyViolationError": (
        Reason.CONTENT_FILTER,
        "the provider's content filter stopped the call",
    ),
    "Timeout": (Reason.TIMEOUT, "the provider did not answer in time"),
    "APIConnectionError": (Reason.UNAVAILABLE, "the provider could not be reached"),
    "APIResponseValidationError": (Reason.UNAVAILABLE, "the provider's answer could not be read"),
    "JSONSchemaValidationError": (Reason.BAD_REPLY, "the reply does not follow the schema"),
    "UnsupportedParamsError": (Reason.MISCONFIGURED, "the model does not take one of the parameters"),
    "LiteLLMUnknownProvider": (Reason.MISCONFIGURED, "litellm does not know the provider"),
}

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_STATUS = re.compile(r"[1-5][0-9]{2}")


def failure_of_answer(
    status: int, headers: Mapping[str, str], body: bytes | str, now: datetime
) -> ModelFailure:
    """The failure that an HTTP answer is: an error status, a redirect, or a 200 whose body holds an error."""
    error = error_of_body(body)
    if status < 300:
        inner = str(error.get("code"))
        status = int(inner) if _STATUS.fullmatch(inner) else 0
    place = f"HTTP {status}" if status else "HTTP 200 with an error in it"
    names = [
        str(error[key])
        for key in ("type", "code", "error_code", "param")
        if _IDENTIFIER.fullmatch(str(error.get(key) or ""))
    ]
    named = f" ({', '.join(dict.fromkeys(names))})" if names else ""
    reason, cause = _classified(status, " ".join([*names, str(error.get("message") or "")]))
    return ModelFailure(
        reason,
        f"{place}{named}: {cause}",
        retry_after=retry_after(headers, now),
        message=str(error.get("message") or ""),
        limits=limits_of(headers, now),
        status=status or 200,
    )


def failure_of_exception(error: BaseException) -> ModelFailure:
    """The failure that a broken connection, an unreadable body or a passed deadline is.

    Says the class of the error and not its text, which may hold addresses with keys.
    """
    kind = type(error).__name__
    if isinstance(error, TimeoutError):
        return ModelFailure(Reason.TIMEOUT, "the provider did not answer in time")
    if isinstance(error, ssl.SSLError | ssl.CertificateError) or "Certificate" in kind or "SSL" in kind:
        return ModelFailure(Reason.MISCONFIGURED, f"the provider's certificate was not accepted ({kind})")
    if "InvalidURL" in kind or "InvalidUrl" in kind or "NonHttpUrl" in kind:
        return ModelFailure(Reason.MISCONFIGURED, f"the address of the model is not one ({kind})")
    if "DNS" in kind:
        return ModelFailure(Reason.UNAVAILABLE, f"the provider's host name was not found ({kind})")
    if "Payload" in kind or "ContentEncoding" in kind:
        return ModelFailure(Reason.UNAVAILABLE, f"the answer broke off or could not be decoded ({kind})")
    return ModelFailure(Reason.UNAVAILABLE, f"the provider could not be reached ({kind})")


def failure_of_litellm(error: Exception, now: datetime) -> ModelFailure:
    """The failure that an exception of litellm is: by its words, its class, else its status."""
    kind = type(error).__name__
    message = str(getattr(error, "message", error))
    headers = getattr(error, "litellm_response_headers", None) or {}
    status = getattr(error, "status_code", None)
    known = next((LITELLM[base.__name__] for base in type(error).__mro__ if base.__name__ in LITELLM), None)
    reason, cause = known or _classified(status if isinstance(status, int) else 0, message)
    return ModelFailure(
        reason,
        f"litellm's {kind}: {cause}",
        retry_after=retry_after(headers, now),
        message=message,
        limits=limits_of(headers, now),
        status=status if isinstance(status, int) else None,
    )


def error_of_body(body: bytes | str) -> Mapping[str, Any]:
    """The `error` object of an answer, whichever of the usual forms it has; empty where there is none."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, dict):
        return {}
    error = answer.get("error", answer if "message" in answer or "detail" in answer else None)
    if isinstance(error, dict):
        return {"message": error.get("detail"), **error}
    return {"message": str(error)} if error else {}


def retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """How long the provider asks to wait: seconds, milliseconds or a date; never below zero nor above an hour."""
    found = {key.lower(): value for key, value in headers.items() if key.lower().startswith("retry-after")}
    wait: timedelta | None = None
    try:
        if "retry-after-ms" in found:
            wait = timedelta(milliseconds=float(found["retry-after-ms"]))
        elif "retry-after" in found:
            wait = timedelta(seconds=float(found["retry-after"]))
    except (ValueError, OverflowError):
        try:
            at = parsedate_to_datetime(found.get("retry-after", ""))
        except (ValueError, OverflowError):
            return None
        wait = (at if at.tzinfo else at.replace(tzinfo=UTC)) - now
    return None if wait is None else min(max(wait, timedelta()), LONGEST_RETRY_AFTER)


def _classified(status: int, said: str) -> tuple[Reason, str]:
    if status != 429 and status < 500:
        for pattern, reason, cause in WORDS:
            if pattern.search(said):
                return reason, cause
    elif status == 429 and "insufficient_quota" in said:
        return Reason.MISCONFIGURED, "the account has no quota left"
    if status in STATUSES:
        return STATUSES[status]
    if 300 <= status < 400:
        return Reason.MISCONFIGURED, "the address redirects elsewhere: name that one as base_url"
    if 400 <= status < 500:
        return Reason.MISCONFIGURED, "the provider rejected the request"
    return Reason.UNAVAILABLE, "the provider failed"
