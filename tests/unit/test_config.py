"""Configuration: order of precedence, units, and every mistake at once."""

from datetime import timedelta
from pathlib import Path

import pytest

from evaluator.config import Config, load_config, load_what_holds, parse_duration, parse_size
from evaluator.errors import ConfigurationError, MistakesError


def config_of(
    folder: Path, text: str = "", environment: dict[str, str] | None = None, **overrides: object
) -> Config:
    file = folder / "evaluator.yaml"
    file.write_text(text)
    return load_config(file, environment or {}, overrides)


def test_the_command_line_comes_before_the_environment_before_the_file(tmp_path: Path) -> None:
    text = "settle: 3s\nevery: 3m\nprefix: file\n"
    environment = {"EVALUATOR_SETTLE": "2s", "EVALUATOR_EVERY": "2m"}

    config = config_of(tmp_path, text, environment, settle="1s")

    assert (config.settle, config.every) == (timedelta(seconds=1), timedelta(minutes=2))
    assert (config.prefix, config.max_wait) == ("file", timedelta(hours=1))


def test_the_environment_nests_and_reads_lists_numbers_and_null(tmp_path: Path) -> None:
    environment = {
        "EVALUATOR_JUDGE__BASE_URL": "http://127.0.0.1:1/v1",
        "EVALUATOR_JUDGE__MAX_CONCURRENCY": "7",
        "EVALUATOR_JUDGE__BUDGET__USD_PER_DAY": "null",
        "EVALUATOR_PUBLISH": "[annotations]",
        "EVALUATOR_COLLECT__TEE": "mlflow",
        "EVALUATOR_PREFIX": "2026",
    }

    config = config_of(tmp_path, "judge: {model: openai/x, timeout: 5s}", environment)

    assert (config.judge.model, config.judge.base_url) == ("openai/x", "http://127.0.0.1:1/v1")
    assert (config.judge.max_concurrency, config.judge.budget.usd_per_day) == (7, None)
    assert (config.publish, config.collect.tee, config.prefix) == (["annotations"], "mlflow", "2026")


def test_relative_paths_start_from_the_files_folder_also_from_the_environment(tmp_path: Path) -> None:
    environment = {
        "EVALUATOR_MLFLOW__TRACKING_URI": "sqlite:///sub/mlflow.db",
        "EVALUATOR_SPANS": "./else/spans",
    }

    config = config_of(tmp_path, "tables: ./traces", environment)

    assert config.table_uri("otel_logs") == str(tmp_path / "traces" / "agent_otel_logs")
    assert config.table_uri("otel_spans") == str(tmp_path / "else" / "spans")
    assert config.tracking_uri == f"sqlite:///{tmp_path}/sub/mlflow.db"


def test_uris_stay_as_they_are(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, "tables: s3://bucket/traces/\nmlflow: {tracking_uri: 'http://127.0.0.1:5000'}"
    )

    assert config.table_uri("eval_ledger") == "s3://bucket/traces/agent_eval_ledger"
    assert config.tracking_uri == "http://127.0.0.1:5000"


def test_mlflows_own_names_count_below_ours(tmp_path: Path) -> None:
    theirs = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "MLFLOW_EXPERIMENT_NAME": "theirs"}

    config = config_of(
        tmp_path, "mlflow: {experiment: file}", {**theirs, "EVALUATOR_MLFLOW__EXPERIMENT": "ours"}
    )

    assert (config.tracking_uri, config.mlflow.experiment) == ("http://127.0.0.1:5000", "ours")


def test_every_mistake_is_told_at_once_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    text = (
        "settel: 1s\njudge:\n  modle: x\n  timeout: 60\nevery: 15\npublish: [nowhere]\ntimezone: Mars/Base\n"
    )

    with pytest.raises(MistakesError) as raised:
        config_of(tmp_path, text, {"EVALUATOR_HTTP__PORT": "many"})

    lines = str(raised.value).splitlines()
    assert len(lines) == 7
    assert any(":1: " in line and 'did you mean "settle"?' in line for line in lines)
    assert any(":3: " in line and 'did you mean "model"?' in line for line in lines)
    assert any(":4: judge.timeout" in line and "not a duration" in line for line in lines)
    assert any("EVALUATOR_HTTP__PORT" in line for line in lines)


def test_what_this_version_does_not_serve_is_refused_and_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(MistakesError, match="alerts: not served by this version"):
        config_of(tmp_path, "alerts: [{}]")


@pytest.mark.parametrize(
    ("endpoint", "settings"),
    [
        ("http://localhost:4318", ""),
        ("http://127.0.0.1:4318/v1/traces", ""),
        ("http://[::1]:4317", ""),
        ("http://127.1.2.3:8321", ""),
        ("http://localhost", "collect: {http_port: 80}"),
        ("http://evaluator.internal:9000", "http: {host: evaluator.internal, port: 9000}"),
    ],
)
def test_our_own_spans_are_not_sent_to_our_own_collector(
    endpoint: str, settings: str, tmp_path: Path
) -> None:
    with pytest.raises(
        MistakesError, match=r":2: telemetry: otlp_endpoint: .* is the evaluator's own collector"
    ):
        config_of(tmp_path, f"{settings}\ntelemetry: {{otlp_endpoint: '{endpoint}'}}")


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://", "http://a:b"])
def test_an_endpoint_that_is_no_address_is_a_mistake(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(MistakesError, match=r"telemetry\.otlp_endpoint: is not an address"):
        config_of(tmp_path, f"telemetry: {{otlp_endpoint: '{endpoint}'}}")


def test_another_receiver_is_taken_and_none_is_wanted_by_default(tmp_path: Path) -> None:
    elsewhere = {"EVALUATOR_TELEMETRY__OTLP_ENDPOINT": "https://otel.example.com:4318/otlp"}
    beside = {"EVALUATOR_TELEMETRY__OTLP_ENDPOINT": "http://localhost:4318"}
    moved = "collect: {http_port: 14318}"

    assert config_of(tmp_path, "", elsewhere).telemetry.otlp_endpoint == "https://otel.example.com:4318/otlp"
    assert config_of(tmp_path, moved, beside).telemetry.otlp_endpoint == "http://localhost:4318"
    assert config_of(tmp_path, "", {"EVALUATOR_TELEMETRY__OTLP_ENDPOINT": ""}).telemetry.otlp_endpoint is None


def test_a_named_file_that_is_missing_is_an_error_and_the_default_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError, match="no such configuration file"):
        load_config("nowhere.yaml", {})
    assert load_config(None, {}).home == tmp_path


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("60s", 60), ("1.5h", 5400), ("7d", 604800)])
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["60", 60, "-1s", "1y", "", None, "s"])
def test_what_has_no_unit_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)


def test_sizes_have_units() -> None:
    assert (parse_size("1GB"), parse_size("1.5 mb"), parse_size(10)) == (10**9, 1_500_000, 10)


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("timeout: 0s", "judge.timeout"),
        ("parameters: {n: 3}", "'n' is no parameter of a judge"),
        ("parameters: {stream: true}", "'stream' is no parameter of a judge"),
        ("parameters: {model: other}", "'model' is no parameter of a judge"),
        ("parameters: {max_tokens: null}", "'max_tokens' has to be a number of tokens"),
        ("parameters: {max_completion_tokens: many}", "'max_completion_tokens' has to be a number of tokens"),
    ],
)
def test_a_request_that_would_be_no_judgement_is_a_mistake(judge: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(MistakesError) as raised:
        config_of(tmp_path, f"judge: {{{judge}}}")

    assert said in str(raised.value)


def test_settings_that_are_wrong_are_left_out_to_look_for_more_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "evaluator.yaml"
    file.write_text(
        "setle: 1s\nevery: never\nprices: {a/b: {input_per_milion: 1, output_per_million: 2}}\n"
        "redact: [email, {pattrn: x}]\nalerts: [{}]\njudge: {model: a/b, timeout: 5}\n"
    )

    config, mistakes = load_what_holds(file, {})

    assert {int(str(one).split(":")[1]) for one in mistakes} == {1, 2, 3, 4, 5, 6}
    assert (config.judge.model, config.judge.timeout) == ("a/b", timedelta(seconds=60))
    assert (config.every, config.prices, config.alerts) == (timedelta(minutes=15), {}, [])


@pytest.mark.parametrize("where", ["guidelines: [7]", "python_modules: 7"])
def test_nobody_looks_on_where_the_place_to_look_is_wrong(tmp_path: Path, where: str) -> None:
    file = tmp_path / "evaluator.yaml"
    file.write_text(f"setle: 1s\n{where}\n")

    with pytest.raises(MistakesError) as caught:
        load_what_holds(file, {})

    assert len(caught.value.mistakes) == 2
