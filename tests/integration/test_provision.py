"""The four trace tables, made once."""

from pathlib import Path

from evaluator.config import Config
from evaluator.tables.delta import DeltaStore
from evaluator.tables.provision import DESCRIPTION, TRACE_TABLES, provision


def test_provisioning_twice_makes_each_table_once_with_its_columns(tmp_path: Path) -> None:
    config = Config(home=tmp_path)

    made, again = provision(config), provision(config)

    assert made == [config.table_uri(table) for table in TRACE_TABLES]
    assert again == []
    for table, schema in TRACE_TABLES.items():
        snapshot = DeltaStore(config.table_uri(table)).open()
        assert snapshot.schema == schema
        assert snapshot.description.startswith(DESCRIPTION)
        assert snapshot.partition_columns == []
        assert snapshot.raw_readable
