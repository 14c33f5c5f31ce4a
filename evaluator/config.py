"""Settings as types: evaluator.yaml, the environment over it, and what is wrong with either."""

import difflib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from evaluator.access import is_loopback
from evaluator.errors import ConfigurationError, Mistake, MistakesError
from evaluator.yamlfile import YamlFile, load_yaml

DEFAULT_FILE = "evaluator.yaml"
PREFIX = "EVALUATOR_"
CONFIG_VARIABLE = "EVALUATOR_CONFIG"
FOREIGN_NAMES: dict[str, tuple[str, ...]] = {
    "MLFLOW_TRACKING_URI": ("mlflow", "tracking_uri"),
    "MLFLOW_EXPERIMENT_NAME": ("mlflow", "experiment"),
}
"""Environment names that people bring along from MLflow; ours come before them, and both before the file."""

WHERE_TO_LOOK = ("guidelines", "python_modules")
"""Settings without which nobody can say what is wrong with the guideline files."""

LONGEST = timedelta(days=36_500)

TEXTS = (str, str | None, dict[str, str])
"""Settings whose value from the environment is a text whatever it looks like: a token may be all digits."""

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*$")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB)\s*$", re.IGNORECASE)
_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_duration(value: object) -> timedelta:
    """A duration such as `60s`, `15m`, `1h`, `7d`; a bare number is not one, for it has no unit."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration (write 60s, 15m, 1h or 7d)")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > LONGEST.total_seconds():
        raise ValueError(f"{value!r} is longer than {LONGEST.days:,} days")
    return timedelta(seconds=seconds)


def parse_size(value: object) -> int:
    """A size in bytes, such as `1GB`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size (write 500MB or 1GB)")
    return int(float(match[1]) * _SIZES[match[2].lower()])


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Positive = Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(BaseModel):
    """A part of the configuration: a typo is an error, never a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DailyBudget(Settings):
    """Hard caps for a UTC day; None is no cap."""

    usd_per_day: Annotated[float, Field(ge=0)] | None = None
    tokens_per_day: Annotated[int, Field(ge=0)] | None = None


class BudgetSettings(DailyBudget):
    """Hard caps for a UTC day, and for one tick or evaluation."""

    usd_per_day: Annotated[float, Field(ge=0)] | None = 20.0
    usd_per_run: Annotated[float, Field(ge=0)] | None = None
    tokens_per_run: Annotated[int, Field(ge=0)] | None = None


class PriceSettings(Settings):
    """A model's price in USD for a million tokens."""

    input_per_million: Annotated[float, Field(ge=0)]
    output_per_million: Annotated[float, Field(ge=0)]


OWN_PARAMETERS = (
    "messages", "model", "n", "best_of", "stream", "response_format", "tools", "tool_choice", "functions", "function_call",
)  # fmt: skip
"""What a request says by itself: other messages, another model, several answers or a stream would be no judgement."""


class JudgeSettings(Settings):
    """The default judge model, and how it is called."""

    model: str = "openai/gpt-5-mini"
    base_url: str | None = None
    parameters: dict[str, Any] = {"temperature": 0}
    max_concurrency: Annotated[int, Field(ge=1)] = 64
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    timeout: Positive = timedelta(seconds=60)
    price: PriceSettings | None = None
    budget: BudgetSettings = BudgetSettings()

    @field_validator("parameters")
    @classmethod
    def _of_a_judgement(cls, value: dict[str, Any]) -> dict[str, Any]:
        """A budget reckons with the cap of one answer."""
        for name in OWN_PARAMETERS:
            if name in value:
                raise ValueError(f"{name!r} is no parameter of a judge: the evaluator says it by itself")
        for name in ("max_tokens", "max_completion_tokens"):
            cap = value.get(name, 1)
            if type(cap) is not int or cap < 1:
                raise ValueError(f"{name!r} has to be a number of tokens from 1 on, such as 1000")
        return value


class RedactionPattern(Settings):
    """A pattern of one's own (RE2) and the word that stands in its place."""

    pattern: str
    as_: Annotated[str, Field(alias="as")] = "REDACTED"


RedactionRule = Literal["email", "phone", "credit_card", "ip_address", "iban", "secret"]


class CacheSettings(Settings):
    max_age: Duration = timedelta(days=30)
    max_size: Size = 10**9


class MlflowSettings(Settings):
    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "agent"


class CollectSettings(Settings):
    http_port: Port = 4318
    grpc_port: Port = 4317
    tee: Literal["mlflow"] | None = None


class HttpSettings(Settings):
    host: str = "127.0.0.1"
    port: Port = 8321
    token: str | None = None


class RetentionSettings(Settings):
    ledger: Duration = timedelta(days=400)


class TelemetrySettings(Settings):
    """Where the evaluator's own spans go: an OTLP receiver over HTTP, the part of its address before /v1/traces."""

    otlp_endpoint: str | None = None

    @field_validator("otlp_endpoint")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if not value:
            return None
        if _where(value) is None:
            raise ValueError("is not an address (write http://host:4318, the part before /v1/traces)")
        return value


def _where(address: str) -> tuple[str, int] | None:
    """The host and the port of an HTTP address; None for what is none."""
    try:
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return parts.hostname.rstrip("."), port


class Config(Settings):
    """The whole configuration, as the contract lists it. `home` is the folder that relative paths start from."""

    home: Path = Field(default=Path(), exclude=True)
    tables: str = "./traces"
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "agent"
    spans: str | None = None
    annotations: str | None = None
    storage_options: dict[str, str] = {}
    every: Positive = timedelta(minutes=15)
    cron: str | None = None
    timezone: str = "UTC"
    start: str = "auto"
    settle: Duration = timedelta(seconds=60)
    max_wait: Duration = timedelta(hours=1)
    session_idle: Duration = timedelta(minutes=5)
    late_window: Duration = timedelta(days=7)
    rescore_late: bool = False
    guidelines: Path = Path("guidelines")
    prompts: Path | None = None
    python_modules: list[str] = []
    judge: JudgeSettings = JudgeSettings()
    redact: list[RedactionRule | RedactionPattern] = ["email", "phone", "credit_card", "ip_address", "secret"]
    cache: CacheSettings = CacheSettings()
    state: Path = Path(".evaluator")
    mlflow: MlflowSettings = MlflowSettings()
    publish: list[Literal["annotations", "mlflow"]] = ["annotations", "mlflow"]
    collect: CollectSettings = CollectSettings()
    http: HttpSettings = HttpSettings()
    prices: dict[str, PriceSettings] = {}
    alerts: list[dict[str, Any]] = []
    retention: RetentionSettings = RetentionSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    log: Literal["text", "json"] = "text"
    grace: Duration = timedelta(seconds=25)

    @field_validator("storage_options", mode="before")
    @classmethod
    def _as_texts(cls, value: object) -> object:
        """Stores take texts; `true` and numbers are what people write."""
        if not isinstance(value, dict):
            return value
        return {
            key: str(item).lower()
            if isinstance(item, bool)
            else str(item)
            if isinstance(item, int | float)
            else item
            for key, item in value.items()
        }

    @field_validator("tables", "spans", "annotations")
    @classmethod
    def _named_in_full(cls, value: str | None, info: ValidationInfo) -> str | None:
        """In a catalog, `tables` names a schema, the others a table."""
        wanted = "uc://catalog.schema" + ("" if info.field_name == "tables" else ".table")
        if value is not None and value.startswith("uc://"):
            parts = value.removeprefix("uc://").split(".")
            if len(parts) != wanted.count(".") + 1 or not all(
                re.fullmatch(r"[^\s/`.]+", part) for part in parts
            ):
                raise ValueError(f"{value!r} is not {wanted}")
        return value

    @field_validator("publish")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"{value!r} is not a time zone (write UTC or Europe/Berlin)") from error
        return value

    @field_validator("start")
    @classmethod
    def _known_start(cls, value: str) -> str:
        if value not in ("auto", "earliest", "latest"):
            parse_duration(value)
        return value

    @field_validator("telemetry")
    @classmethod
    def _not_judged(cls, value: TelemetrySettings, info: ValidationInfo) -> TelemetrySettings:
        """The evaluator's own spans go nowhere near its tables: each that is judged would make further ones."""
        found = _where(value.otlp_endpoint or "")
        collect, http = info.data.get("collect"), info.data.get("http")
        if found is None or collect is None or http is None:
            return value
        host, port = found
        ours = {
            "collect.http_port": collect.http_port,
            "collect.grpc_port": collect.grpc_port,
            "http.port": http.port,
        }
        setting = next((name for name, own in ours.items() if own == port), None)
        here = is_loopback(host) or host in ("0.0.0.0", "::", http.host, socket.gethostname().lower())  # noqa: S104 -- compared, not bound
        if here and setting is not None:
            raise ValueError(
                f"otlp_endpoint: {host}:{port} is the evaluator's own collector ({setting}): it would judge its own calls, "
                f"and each of them makes further ones (name another receiver, or give {setting} another port)"
            )
        return value

    @field_validator("alerts")
    @classmethod
    def _not_served(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What is asked of a later version is refused: a setting that does nothing would be a lie."""
        if value:
            raise ValueError("not served by this version")
        return value

    def table_uri(self, table: str) -> str:
        """Where a table lies: `otel_spans`, `otel_logs`, `otel_metrics`, `otel_annotations`, `eval_ledger`."""
        whole = {"otel_spans": self.spans, "otel_annotations": self.annotations}.get(table)
        if whole is not None:
            return self.located(whole)
        between = "." if self.tables.startswith("uc://") else "/"
        return f"{self.located(self.tables).rstrip('/')}{between}{self.prefix}_{table}"

    def located(self, uri: str) -> str:
        """A URI as it is, a path made absolute against the configuration's folder."""
        return uri if "://" in uri else str(self.path(uri))

    def path(self, path: str | Path) -> Path:
        return (self.home / Path(path).expanduser()).absolute()

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI; a relative `sqlite:///` path or folder starts from the configuration's folder."""
        uri = self.mlflow.tracking_uri
        if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
            return f"sqlite:///{self.path(uri.removeprefix('sqlite:///'))}"
        if "://" in uri or uri.startswith("databricks"):
            return uri
        return str(self.path(uri))


def load_config(
    file: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration: overrides (the command line), the environment, the file, the defaults, in this order.

    A file that was named must exist; the default one need not. Raises MistakesError with every mistake at once.
    """
    written = _written(file, environment, overrides)
    try:
        return written.validated()
    except ValidationError as error:
        raise MistakesError(written.mistakes(error)) from error


def load_what_holds(
    file: str | Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Config, list[Mistake]]:
    """The configuration without the settings that are wrong, and all that is wrong with these: to look on for mistakes.

    Raises MistakesError when what is wrong says where to look.
    """
    written, mistakes = _written(file, environment, None), list[Mistake]()
    while True:
        try:
            return written.validated(), mistakes
        except ValidationError as error:
            mistakes = mistakes or written.mistakes(error)
            wrong = [tuple(map(str, item["loc"])) for item in error.errors()]
            lost = any(not keys or keys[0] in WHERE_TO_LOOK for keys in wrong)
            left_out = [] if lost else [keys for keys in wrong if _take_out(written.data, keys)]
            if not left_out:
                raise MistakesError(mistakes) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What the file, the environment and the command line say, and where each of it was said."""

    data: dict[str, Any]
    home: Path
    document: YamlFile
    origins: Mapping[tuple[str, ...], str]

    def validated(self) -> Config:
        return Config.model_validate({**self.data, "home": self.home})

    def mistakes(self, error: ValidationError) -> list[Mistake]:
        return _mistakes(error, self.document, self.origins)


def _written(
    file: str | Path | None, environment: Mapping[str, str] | None, overrides: Mapping[str, Any] | None
) -> _Written:
    environment = os.environ if environment is None else environment
    named = file or environment.get(CONFIG_VARIABLE)
    path = Path(named or DEFAULT_FILE)
    if named and not path.is_file():
        raise ConfigurationError(
            f"{path}: there is no such configuration file (evaluator init makes one, --config names another)"
        )
    document = load_yaml(path) if path.is_file() else YamlFile(path=str(path), data={}, lines={})
    if document.data is None:
        document = YamlFile(path=str(path), data={}, lines={})
    if not isinstance(document.data, dict):
        raise MistakesError([Mistake(path=str(path), line=1, message="the configuration is not a mapping")])
    data = dict(document.data)
    origins: dict[tuple[str, ...], str] = {}
    for name, foreign_keys in FOREIGN_NAMES.items():
        if environment.get(name):
            origins[foreign_keys] = name
            _put(data, foreign_keys, environment[name])
    for name, text in sorted(environment.items()):
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            keys = tuple(part.lower() for part in name.removeprefix(PREFIX).split("__"))
            origins[keys] = name
            _put(data, keys, _environment_value(keys, text))
    for keys_text, value in (overrides or {}).items():
        _put(data, tuple(keys_text.split(".")), value)
    return _Written(data=data, home=path.absolute().parent, document=document, origins=origins)


def nearest(word: str, known: list[str]) -> str:
    """A hint that names the nearest right word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _put(data: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    for key in keys[:-1]:
        child = data.get(key)
        data[key] = dict(child) if isinstance(child, dict) else {}
        data = data[key]
    data[keys[-1]] = value


def _take_out(data: dict[str, Any], keys: tuple[str, ...]) -> bool:
    """Take out a setting, or the part of the configuration that lacks it; of a list, the whole list. Whether it was there."""
    child = data.get(keys[0])
    if len(keys) > 1 and isinstance(child, dict) and keys[1] in child:
        data[keys[0]] = dict(child)
        return _take_out(data[keys[0]], keys[1:])
    return data.pop(keys[0], _take_out) is not _take_out


def _environment_value(keys: tuple[str, ...], text: str) -> object:
    """Text stays text where the setting is a text; else it is read as YAML (numbers, lists, true, null)."""
    model: type[BaseModel] = Config
    for key in keys:
        field = model.model_fields.get(key)
        if field is None:
            break
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif annotation in TEXTS:
            return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, str) else value


def _mistakes(
    error: ValidationError, document: YamlFile, origins: Mapping[tuple[str, ...], str]
) -> list[Mistake]:
    mistakes = []
    for item in error.errors():
        keys = tuple(str(part) for part in item["loc"])
        place = next((name for known, name in origins.items() if keys[: len(known)] == known), None)
        name = ".".join(keys) or "configuration"
        if item["type"] == "extra_forbidden":
            message = f'unknown setting "{name}"{nearest(keys[-1], _known(keys[:-1]))}'
        else:
            message = f"{name}: {_said(item['msg'])}"
        if place:
            message = f"{message} (from the environment: {place})"
        mistakes.append(Mistake(path=document.path, line=document.line(keys), message=message))
    return mistakes


def _said(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input should be ").strip()


def _known(keys: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for key in keys:
        field = model.model_fields.get(key)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        model = field.annotation
    return [name for name in model.model_fields if name != "home"]
