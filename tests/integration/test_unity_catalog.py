"""Tables in Unity Catalog: found by name, with keys that end while a run goes on."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from evaluator.config import Config
from evaluator.errors import MistakesError, TableError
from evaluator.tables.delta import DeltaStore
from evaluator.tables.provision import TRACE_TABLES, provision
from evaluator.tables.schemas import SPANS
from evaluator.tables.stores import Stores
from evaluator.wiring import build_tables
from evaluator.worker.turns import Worker
from tests.project import CODE_ONLY, ONE_JUDGE
from tests.s3 import S3
from tests.stub_provider import StubProvider
from tests.traffic import answer, append
from tests.unity_catalog import UnityCatalog

SCHEMA = "uc://main.support"
KEY_SECONDS = 6.0
PRICE = {"input_per_million": 1, "output_per_million": 1}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with S3() as running:
        yield running


@pytest.fixture
def catalog(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[UnityCatalog]:
    """A catalog whose schema has a storage root of its own."""
    with UnityCatalog(s3) as running:
        running.root = s3.make_bucket(f"bucket-{uuid4().hex}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "UNITY_CATALOG_URI"):
            monkeypatch.delenv(name, raising=False)
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


def a_config(folder: Path, guidelines: str = CODE_ONLY, **settings: Any) -> Config:
    (folder / "guidelines").mkdir()
    (folder / "guidelines" / "code.yaml").write_text(guidelines)
    return Config(home=folder, tables=SCHEMA, settle="0s", publish=["annotations"], **settings)


async def test_init_makes_external_tables_and_a_worker_outlives_its_keys(
    tmp_path: Path, s3: S3, catalog: UnityCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with StubProvider(latency=KEY_SECONDS) as stub:
        judge = {"base_url": stub.base_url, "price": PRICE}
        config = a_config(tmp_path, ONE_JUDGE, judge=judge)
        made = provision(config)
        tables = build_tables(config)
        tables.ledger.provision()
        append(Stores(config).of("otel_spans"), [answer("a")])
        catalog.key_seconds, before = KEY_SECONDS, len(catalog.vended)
        s3.requests()

        worker = Worker(config, build_tables(config))
        turn = await worker.turn(wait=True)
        await worker.close()

        keys = catalog.vended[before:]
        assert (turn.summary.results, turn.behind, stub.count) == (2, [], 1)
        assert keys.count(("main.support.agent_eval_ledger", "READ_WRITE")) >= 2
        assert {operation for name, operation in keys if name.endswith("_otel_spans")} == {"READ"}
        assert [asked for asked in s3.requests() if asked.status == 403] == []
    assert made == [f"{SCHEMA}.agent_{table}" for table in TRACE_TABLES]
    known = catalog.tables["main.support.agent_eval_ledger"]
    assert known["storage_location"] == f"{catalog.root}/evaluator/main.support/agent_eval_ledger"
    assert {column["name"]: column["type_text"] for column in known["columns"]}["seq"] == "bigint"


def test_a_snapshot_outlives_its_key_and_keeps_its_guard(s3: S3, catalog: UnityCatalog) -> None:
    catalog.key_seconds = 2.0
    store = Stores(Config(tables=SCHEMA)).of("otel_spans")
    store.create(SPANS)
    append(store, [answer("a")])
    first, second = store.open(), store.open()
    [added] = first.commit(1).added  # type: ignore[union-attr]
    time.sleep(2.0)
    s3.requests()

    assert first.read_file(added, ["trace_id"]).num_rows == 1
    assert first.query("select count(*) as n from t").to_pylist() == [{"n": 1}]
    first.append(SPANS.empty_table(), {"seq": 1})
    with pytest.raises(Exception, match="Concurrent transaction"):
        second.append(SPANS.empty_table(), {"seq": 1})
    assert store.has_commit_after(1)
    assert [asked for asked in s3.requests() if asked.status == 403] == []


async def test_managed_annotations_are_refused_before_any_work_and_the_rest_is_as_before(
    tmp_path: Path, s3: S3, catalog: UnityCatalog
) -> None:
    config = a_config(tmp_path)
    provision(config)
    build_tables(config).ledger.provision()
    append(Stores(config).of("otel_spans"), [answer("a")])
    catalog.tables["main.support.agent_otel_annotations"]["table_type"] = "MANAGED"
    told = (
        "uc://main.support.agent_otel_annotations: cannot be written: Unity Catalog gives no key to write it, "
        "a table of the type MANAGED"
    )

    for work in (lambda: provision(config), lambda: build_tables(config).check_writable(["annotations"])):
        with pytest.raises(TableError, match="publish: \\[mlflow\\]") as raised:
            work()
        assert str(raised.value).startswith(told)
    assert build_tables(config).views.query("select * from assessments").num_rows == 0

    elsewhere = config.model_copy(update={"publish": []})
    worker = Worker(elsewhere, build_tables(elsewhere))
    assert (await worker.turn(wait=True)).summary.results == 1
    await worker.close()


def test_where_nothing_can_be_made_the_sql_is_told(s3: S3, catalog: UnityCatalog) -> None:
    catalog.root = None

    with pytest.raises(TableError) as raised:
        build_tables(Config(tables=SCHEMA)).ledger.provision()

    told = str(raised.value)
    assert told.startswith(
        "uc://main.support.agent_eval_ledger: the catalog names no storage root to make it at"
    )
    assert "CREATE TABLE `main`.`support`.`agent_eval_ledger` (`seq` BIGINT" in told
    assert "USING DELTA PARTITIONED BY (`day`) LOCATION '<your external location>/" in told


@pytest.mark.parametrize(
    ("entered", "told"),
    [
        ({"properties": {"delta.feature.catalogManaged": "supported"}}, "DROP FEATURE catalogManaged"),
        ({"data_source_format": "ICEBERG"}, "is no Delta table but ICEBERG"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_entry(
    s3: S3, catalog: UnityCatalog, entered: dict[str, Any], told: str
) -> None:
    catalog.add("main.support.agent_otel_spans", f"{catalog.root}/x", **entered)

    with pytest.raises(TableError, match=told):
        build_tables(Config(tables=SCHEMA)).spans.open()


def test_a_table_that_is_not_there_and_a_token_that_is_not_right(
    s3: S3, catalog: UnityCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build_tables(Config(tables=SCHEMA)).spans.store

    with pytest.raises(
        TableError, match=r"^uc://main.support.agent_otel_spans: there is no such table in the catalog"
    ):
        store.open()

    monkeypatch.setenv("DATABRICKS_TOKEN", "wrong")
    for asked in (
        Stores(Config(tables=SCHEMA)).of("otel_spans").open,
        Stores(Config(tables=SCHEMA)).of("otel_spans").exists,
    ):
        with pytest.raises(
            TableError, match=r"^uc://main.support.agent_otel_spans: Unity Catalog does not accept the token"
        ):
            asked()


def test_a_table_made_anew_elsewhere_is_found_with_the_next_key(s3: S3, catalog: UnityCatalog) -> None:
    name = "main.support.agent_otel_spans"
    DeltaStore(f"{catalog.root}/old", s3.options()).create(SPANS)
    DeltaStore(f"{catalog.root}/new", s3.options()).create(SPANS)
    catalog.key_seconds = 1.0
    catalog.add(name, f"{catalog.root}/old")
    store = Stores(Config(tables=SCHEMA)).of("otel_spans")
    old = store.open()
    catalog.add(name, f"{catalog.root}/new")
    time.sleep(1.0)

    with pytest.raises(TableError, match="made anew meanwhile"):
        old.query("select * from t")
    assert store.open().table_id != old.table_id


@pytest.mark.parametrize(
    "settings", [{"tables": "uc://main"}, {"tables": "uc://a.b.c"}, {"spans": "uc://a.b"}]
)
def test_a_name_that_is_not_whole_is_a_mistake(settings: dict[str, str], tmp_path: Path) -> None:
    from evaluator.config import load_config

    with pytest.raises(MistakesError, match=r"is not uc://catalog\.schema"):
        load_config(environment={}, overrides=settings)
