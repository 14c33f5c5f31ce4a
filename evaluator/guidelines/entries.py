"""One entry of a guideline file: what is wrong with it beyond its form, and the definition that it makes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evaluator.config import DailyBudget, nearest
from evaluator.dataset.conditions import column_types, failing, parse_condition
from evaluator.dataset.expressions import ConditionError
from evaluator.errors import ConfigurationError
from evaluator.guidelines.definitions import (
    UNSURE,
    BuiltinDefinition,
    Categories,
    Definition,
    Example,
    JudgeDefinition,
    NumberRange,
    PythonDefinition,
    RegexDefinition,
    SqlDefinition,
    Values,
    YesNo,
)
from evaluator.guidelines.schema import (
    BuiltinEntry,
    Entry,
    JudgeEntry,
    PythonEntry,
    RangeEntry,
    RegexEntry,
    SqlEntry,
)
from evaluator.models.build import canonical
from evaluator.redaction import compile_pattern
from evaluator.scorers.builtin import BUILTINS
from evaluator.scorers.source import python_mistake
from evaluator.yamlfile import Keys

VARIABLES = ("inputs", "outputs", "expectations", "trace", "conversation")
"""What free instructions may speak of; the last is the trace, by the name that MLflow has for a session's."""

Found = Iterator[tuple[Keys, str]]
"""Mistakes: where in the entry, and in which words."""


def entry_mistakes(group: str, raw: Mapping[str, Any], home: Path, python_modules: Sequence[str]) -> Found:
    """What the types at the door do not see, as far as the entry has the right form."""
    of_sessions = raw.get("target") == "session"
    yield from _condition_mistakes(raw, "filter", session_columns if of_sessions else trace_columns)
    if of_sessions and raw.get("since") is not None:
        yield (
            ("since",),
            "since goes with target: trace or span (evaluator eval --last 7d scores the sessions of the past)",
        )
    yield from _condition_mistakes(raw, "span_filter", span_columns)
    if raw.get("span_filter") is not None and raw.get("target") != "span":
        yield ("span_filter",), "span_filter goes with target: span"
    if group == "judges":
        yield from _judge_mistakes(raw)
        return
    yield from _condition_mistakes(raw, "sql", _COLUMNS.get(str(raw.get("target")), trace_columns))
    if isinstance(raw.get("regex"), str):
        try:
            compile_pattern(raw["regex"])
        except ValueError as error:
            yield ("regex",), f"regex: RE2 does not take it: {error}"
    if isinstance(raw.get("python"), str):
        mistake = python_mistake(raw["python"], home, python_modules)
        if mistake:
            yield ("python",), f"python: {mistake}"
    if raw.get("builtin") in BUILTINS and raw.get("target") not in (None, *BUILTINS[raw["builtin"]].targets):
        yield ("target",), f"builtin {raw['builtin']} looks at a whole trace or session (write target: trace)"
    if raw.get("builtin") in BUILTINS and isinstance(raw.get("options"), dict):
        yield from _option_mistakes(raw["builtin"], raw["options"])


def definition_of(entry: Entry, path: str, line: int) -> Definition:
    """The definition that an entry makes."""
    rule: dict[str, Any] = {
        "name": entry.name,
        "filter": entry.filter,
        "sample_rate": entry.sample_rate,
        "target": entry.target,
        "span_filter": entry.span_filter,
        "since": entry.since,
        "enabled": entry.enabled,
        "path": path,
        "line": line,
    }
    match entry:
        case JudgeEntry():
            return JudgeDefinition(
                guidelines=tuple(entry.guidelines or ()),
                instructions=entry.instructions,
                values=_values(entry.values),
                pass_if=entry.pass_if,
                model=entry.model,
                models=tuple(entry.models or ()),
                decide=entry.decide or "majority",
                escalate_to=entry.escalate_to,
                trace_view=entry.trace_view or ("index" if entry.target == "span" else "full"),
                batch=entry.batch,
                budget=None
                if entry.budget is None
                else DailyBudget(
                    usd_per_day=entry.budget.usd_per_day, tokens_per_day=entry.budget.tokens_per_day
                ),
                examples=tuple(
                    Example(inputs=example.inputs, outputs=example.outputs, expect=example.expect)
                    for example in entry.examples
                ),
                **rule,
            )
        case SqlEntry():
            return SqlDefinition(sql=entry.sql, **rule)
        case RegexEntry():
            return RegexDefinition(regex=entry.regex, on=entry.on, **rule)
        case PythonEntry():
            return PythonDefinition(python=entry.python, **rule)
        case BuiltinEntry():
            return BuiltinDefinition(builtin=entry.builtin, options=entry.options, **rule)
    raise AssertionError(f"{type(entry).__name__} is no kind of entry")


@cache
def trace_columns() -> Mapping[str, str]:
    """What `filter` and `sql` look at: DuckDB's types by name."""
    from evaluator.traces.columns import TRACES

    return column_types(TRACES)


@cache
def session_columns() -> Mapping[str, str]:
    """What `filter` and `sql` look at with target: session."""
    from evaluator.traces.columns import SESSIONS

    return column_types(SESSIONS)


@cache
def span_columns() -> Mapping[str, str]:
    """What `span_filter`, and `sql` with target: span, look at: DuckDB's types by name."""
    from evaluator.traces.columns import SPANS

    return column_types(SPANS)


_COLUMNS = {"trace": trace_columns, "span": span_columns, "session": session_columns}
"""What `sql` looks at, by the target."""


def value_columns(values: Values) -> Mapping[str, str]:
    """What `pass_if` looks at."""
    return {"value": "DOUBLE" if isinstance(values, NumberRange) else "VARCHAR"}


def _values(values: object) -> Values:
    match values:
        case RangeEntry(min=least, max=most):
            return NumberRange(min=least, max=most)
        case list():
            return Categories(values=tuple(values))
        case _:
            return YesNo()


def _condition_mistakes(raw: Mapping[str, Any], key: str, columns: Any) -> Found:
    if not isinstance(raw.get(key), str):
        return
    try:
        parse_condition(raw[key], columns())
    except ConditionError as error:
        yield (key,), f"{key}: {error}"


def _judge_mistakes(raw: Mapping[str, Any]) -> Found:
    asked = [key for key in ("guidelines", "instructions") if raw.get(key) is not None]
    values = raw.get("values")
    if not asked:
        yield (), "has neither guidelines nor instructions; it has to have one of them"
    if len(asked) == 2:
        yield ("instructions",), "has both guidelines and instructions; it has to have one of them"
    if asked == ["guidelines"] and values not in (None, "yes/no"):
        yield ("values",), "values go with instructions; guidelines hold or do not (yes or no)"
    if isinstance(raw.get("instructions"), str):
        yield from ((("instructions",), message) for message in _instruction_mistakes(raw["instructions"]))
    if isinstance(values, list):
        double = sorted({str(value) for value in values if values.count(value) > 1})
        if double:
            yield ("values",), f'values: "{double[0]}" stands twice'
    if isinstance(values, dict) and _numbers(values) and values["min"] >= values["max"]:
        yield ("values", "min"), "values: min has to be less than max"
    yield from _pass_if_mistakes(raw, values)
    yield from _panel_mistakes(raw)
    if raw.get("trace_view") in ("answer", "index") and isinstance(raw.get("instructions"), str):
        named = _variables(raw["instructions"])
        if named and not named & {"trace", "conversation"}:
            yield (
                ("trace_view",),
                "trace_view is about the whole trace, of which the instructions name only "
                f"{' and '.join(f'{{{{ {name} }}}}' for name in sorted(named))}",
            )


def _pass_if_mistakes(raw: Mapping[str, Any], values: object) -> Found:
    """A condition that is none, or that cannot be computed for a value that the judge may give."""
    columns = value_columns(NumberRange(min=0, max=1) if isinstance(values, dict) else YesNo())
    mistakes = list(_condition_mistakes(raw, "pass_if", lambda: columns))
    yield from mistakes
    declared = _declared(values)
    if mistakes or not isinstance(raw.get("pass_if"), str) or not declared:
        return
    failed = failing(parse_condition(raw["pass_if"], columns), declared)
    if failed is not None:
        value = f'"{failed[0]}"' if isinstance(failed[0], str) else f"{failed[0]:g}"
        yield ("pass_if",), f"pass_if: says nothing of {value}, which is one of the values: {failed[1]}"


def _declared(values: object) -> list[str] | list[float]:
    """Values that the judge may give: all words, and of a range its ends and its middle; none where they are no values."""
    if values in (None, "yes/no"):
        return ["yes", "no"]
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return list(values)
    if isinstance(values, dict) and _numbers(values):
        least, most = float(values["min"]), float(values["max"])
        return [least, (least + most) / 2, most]
    return []


def _panel_mistakes(raw: Mapping[str, Any]) -> Found:
    """What does not go together about the models that a judge asks."""
    asked = raw.get("models") if isinstance(raw.get("models"), list) else None
    names = [name for name in (asked or [raw.get("model")]) if isinstance(name, str)]
    if raw.get("models") is not None and raw.get("model") is not None:
        yield ("model",), "has both model and models; it has to have one of them"
    yield from _name_mistakes(raw)
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        yield ("models",), f'models: "{double[0]}" stands twice'
    if raw.get("decide") is not None and raw.get("models") is None:
        yield ("decide",), "decide goes with models: [a, b, c]"
    if (
        raw.get("decide") == "any_fail"
        and raw.get("values") not in (None, "yes/no")
        and not raw.get("pass_if")
    ):
        yield ("decide",), "decide: any_fail needs pass_if, for no value of these fails by itself"
    if raw.get("escalate_to") in names:
        yield ("escalate_to",), f'escalate_to: "{raw["escalate_to"]}" is asked already; name a stronger model'
    if raw.get("escalate_to") is not None and UNSURE in _words(raw.get("values")):
        yield ("values",), f'values: "{UNSURE}" is what a judge with escalate_to says to be relieved'
    if raw.get("batch") == "joint":
        for key in ("models", "escalate_to"):
            if raw.get(key) is not None:
                yield (key,), f"{key} goes with batch: single, for a joint call has one model"


def _name_mistakes(raw: Mapping[str, Any]) -> Found:
    """Names that name no model."""
    listed = raw["models"] if isinstance(raw.get("models"), list) else []
    named = [(("models", str(index)), name) for index, name in enumerate(listed)]
    for keys, name in [(("model",), raw.get("model")), *named, (("escalate_to",), raw.get("escalate_to"))]:
        if isinstance(name, str) and name.strip():
            try:
                canonical(name)
            except ConfigurationError as error:
                yield keys, str(error)


def _words(values: object) -> list[str]:
    return (
        [value.casefold() for value in values if isinstance(value, str)] if isinstance(values, list) else []
    )


def _numbers(values: Mapping[str, Any]) -> bool:
    return all(isinstance(values.get(key), int | float) for key in ("min", "max"))


def _instruction_mistakes(text: str) -> Iterator[str]:
    """Unknown variables, and templates that are none."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        parsed = Environment(autoescape=True).parse(text)
    except TemplateSyntaxError as error:
        yield f"instructions: {error.message} (line {error.lineno} of the text)"
        return
    for name in sorted(meta.find_undeclared_variables(parsed) - set(VARIABLES)):
        hint = nearest(name, [*VARIABLES]) or f" (there are: {', '.join(VARIABLES)})"
        yield f"instructions: unknown variable {{{{ {name} }}}}{hint}"


def _variables(text: str) -> set[str]:
    """What instructions speak of; nothing where they are no template."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        return set(meta.find_undeclared_variables(Environment(autoescape=True).parse(text)))
    except TemplateSyntaxError:
        return set()


def _option_mistakes(builtin: str, options: Mapping[str, Any]) -> Found:
    model = BUILTINS[builtin].options
    try:
        model.model_validate(dict(options))
    except ValidationError as error:
        for item in error.errors():
            keys = tuple(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                message = (
                    f'unknown option "{keys[-1]}" of {builtin}{nearest(keys[-1], [*model.model_fields])}'
                )
            else:
                said = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
                message = f'option "{".".join(keys)}" of {builtin}: {said}'
            yield ("options", *keys), message
