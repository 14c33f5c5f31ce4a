"""The scorers that come with the program."""

from typing import Any

import pytest

from evaluator.dataset.records import Record
from evaluator.feedback import Feedback, Reason, Unscored
from evaluator.guidelines.definitions import BuiltinDefinition
from evaluator.scorers.builtin import BUILTINS, BuiltinScorer
from evaluator.scorers.language import LANGUAGES, language_of
from tests.a_trace import a_record, a_tool_call, an_llm_call


async def result(builtin: str, record: Record, **options: Any) -> tuple[bool | str | None, str]:
    """Whether it passed (or why there is no result), and the words beside it."""
    scorer = BuiltinScorer(BuiltinDefinition(name="a", builtin=builtin, options=options))
    [scored] = await scorer.score([record])
    match scored.outcome:
        case Feedback(value=value, passed=passed, rationale=rationale):
            assert value == ("yes" if passed else "no")
            return passed, rationale
        case Unscored(reason=reason, detail=detail):
            assert reason is Reason.NOT_APPLICABLE
            return "not applicable", detail


async def test_pii_says_what_was_found_and_not_its_text() -> None:
    record = a_record(response="Ask ann@x.org or bob@x.org, 555-123-4567.")

    assert await result("pii", record) == (False, "The response holds 2 x email, 1 x phone.")
    assert (await result("pii", record, kinds=["iban"]))[0] is True
    assert (await result("pii", record, on="request"))[0] is True


@pytest.mark.parametrize(
    ("response", "options", "passed", "said"),
    [
        ('{"a": 1}', {}, True, "an object"),
        ("[1]", {}, True, "an array"),
        ("null", {}, True, "null"),
        ('{"a": 1', {}, False, "line 1, column 8"),
        ("Sure! {}", {}, False, "not JSON"),
        ("NaN", {}, False, "NaN is no JSON value"),
        ("[" * 100_000, {}, False, "nested too deep"),
        ('```json\n{"a": 1}\n```', {}, False, "not JSON"),
        ('```json\n{"a": 1}\n```', {"code_fence": True}, True, "an object"),
        ('{"a": 1}', {"required": ["a", "b"]}, False, "lacks b"),
        ("[1]", {"required": ["a"]}, False, "an array, not an object"),
    ],
)
async def test_valid_json(response: str, options: dict[str, Any], passed: bool, said: str) -> None:
    found, rationale = await result("valid_json", a_record(response=response), **options)

    assert (found, said in rationale) == (passed, True), rationale


async def test_latency_is_held_against_its_bound() -> None:
    record = a_record(duration_ms=2000.0)

    assert await result("latency", record) == (True, "The trace took 2 s, within 10 s.")
    assert await result("latency", record, at_most="1500ms") == (
        False,
        "The trace took 2 s, longer than 1.5 s.",
    )


async def test_tool_errors_are_counted_by_tool() -> None:
    record = a_record(steps=(a_tool_call(), a_tool_call(failed=True), a_tool_call("sql", failed=True)))

    assert await result("tool_errors", record) == (
        False,
        "2 of 3 tool calls failed: 'search' 1 x, 'sql' 1 x.",
    )
    assert (await result("tool_errors", record, at_most=2))[0] is True


async def test_a_token_budget_holds_each_bound_that_is_set() -> None:
    record = a_record(total_tokens=1000, output_tokens=100, input_tokens=None)

    assert await result("token_budget", record) == (True, "Used 1,000 of 100,000 total tokens.")
    assert (await result("token_budget", record, output=99))[0] is False
    assert (await result("token_budget", record, input=99))[0] == "not applicable"
    assert (await result("token_budget", record, total=None))[0] == "not applicable"


@pytest.mark.parametrize(("response", "passed"), [("Hi", True), (" \n", False), (None, False), ("{}", False)])
async def test_an_empty_response_fails(response: str | None, passed: bool) -> None:
    assert (await result("empty_response", a_record(response=response)))[0] is passed


async def test_repeated_tool_calls_are_the_same_tool_with_the_same_arguments() -> None:
    thrice = a_record(steps=(a_tool_call(), a_tool_call(), a_tool_call(), a_tool_call("sql")))
    different = a_record(steps=tuple(a_tool_call(arguments=str(number)) for number in range(3)))
    asked = a_record(steps=(an_llm_call(*[{"name": "search", "arguments": {"a": 1}}] * 3),))

    assert await result("repeated_tool_calls", thrice) == (
        False,
        "'search' was called 3 x with the same arguments.",
    )
    assert (await result("repeated_tool_calls", different))[0] is True
    assert (await result("repeated_tool_calls", asked))[0] is False
    assert (await result("repeated_tool_calls", thrice, at_most=3))[0] is True


async def test_the_language_is_the_requests_unless_one_is_expected() -> None:
    english = "What is the average response time of the team in Berlin?"
    german = "Die mittlere Antwortzeit des Teams ist im November auf zwei Stunden gestiegen."
    record = a_record(request=english, response=german)

    assert await result("language", record) == (False, "The response is in de, not in en as the request.")
    assert await result("language", record, expected="de") == (True, "The response is in de, as expected.")
    assert (await result("language", a_record(request="12", response=german)))[0] == "not applicable"


@pytest.mark.parametrize(
    ("builtin", "nothing"),
    [
        ("pii", {"response": None}),
        ("valid_json", {"response": None}),
        ("latency", {"duration_ms": None}),
        ("tool_errors", {"steps": ()}),
        ("token_budget", {"total_tokens": None}),
        ("empty_response", {"response": None, "incomplete": True}),
        ("repeated_tool_calls", {"steps": ()}),
        ("language", {"response": None}),
    ],
)
async def test_where_there_is_nothing_to_look_at_there_is_no_verdict(
    builtin: str, nothing: dict[str, Any]
) -> None:
    assert (await result(builtin, a_record(**nothing)))[0] == "not applicable"


def test_a_version_changes_with_the_options_and_not_with_the_name() -> None:
    def version(**parts: Any) -> str:
        return BuiltinScorer(BuiltinDefinition(**{"name": "a", "builtin": "latency", **parts})).version

    assert (
        version() == version(name="b", filter="true", sample_rate=0.5) == version(options={"at_most": "10s"})
    )
    assert len({version(), version(options={"at_most": "11s"}), version(builtin="pii")}) == 3


def test_there_are_the_builtins_that_the_documents_name() -> None:
    assert list(BUILTINS) == [
        *("pii", "valid_json", "latency", "tool_errors"),
        *("token_budget", "empty_response", "repeated_tool_calls", "language"),
    ]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The ticket volume rose by 12 percent in March, and you should staff the weekend."),
        (
            "de",
            "Die Zahl der Tickets ist im März um 12 Prozent gestiegen, wir sollten das Wochenende besetzen.",
        ),
        ("fr", "Le nombre de tickets a augmenté de 12 % en mars, et vous devriez renforcer le week-end."),
        ("es", "El número de tickets aumentó un 12 % en marzo y usted debería reforzar el fin de semana."),
        ("it", "Il numero di ticket è aumentato del 12% a marzo e si dovrebbe rafforzare il fine settimana."),
        ("pt", "O número de tickets aumentou 12% em março e você deveria reforçar o fim de semana."),
        ("nl", "Het aantal tickets is in maart met 12 procent gestegen en u moet het weekend bezetten."),
        ("pl", "Liczba zgłoszeń wzrosła w marcu o 12 procent i nie jest to dobra wiadomość."),
        ("sv", "Antalet ärenden har ökat med 12 procent i mars och det är inte bra."),
        ("tr", "Mart ayında talep sayısı yüzde 12 arttı ve bu ekip için çok iyi bir haber değil."),
        ("zh", "三月份的工单数量增加了百分之十二"),
        ("ja", "3月のチケット数は12%増えました"),
        ("ko", "3월 티켓 수가 12% 증가했습니다"),
        ("ru", "Количество заявок в марте выросло на 12 процентов"),
        ("uk", "Кількість заявок у березні зросла на 12 відсотків, і це погано"),
        ("ar", "ارتفع عدد التذاكر في مارس بنسبة 12 بالمئة"),
        ("he", "מספר הפניות עלה במרץ ב-12 אחוזים"),
        ("hi", "मार्च में टिकटों की संख्या 12 प्रतिशत बढ़ी"),
        ("el", "Ο αριθμός των αιτημάτων αυξήθηκε κατά 12% τον Μάρτιο"),
        ("th", "จำนวนตั๋วเพิ่มขึ้นร้อยละ 12 ในเดือนมีนาคม"),
        (None, "42"),
        (None, ""),
        (None, "ok thanks"),
        (None, "foo bar baz qux"),
        (None, "SELECT count(*) FROM tickets WHERE status = 'open' GROUP BY region"),
    ],
)
def test_a_language_is_told_or_it_is_said_that_it_cannot_be(language: str | None, text: str) -> None:
    assert language_of(text) == language
    assert language is None or language in LANGUAGES
