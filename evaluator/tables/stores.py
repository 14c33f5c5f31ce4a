"""The stores of a configuration's tables: at a URI, or by a name in Unity Catalog."""

import os
from collections.abc import Mapping

from evaluator.config import Config
from evaluator.tables.catalog import SCHEME, Catalog, CatalogStore
from evaluator.tables.delta import DeltaStore


class Stores:
    """Where each table lies. Those in a catalog share one client of it."""

    def __init__(self, config: Config, environment: Mapping[str, str] = os.environ) -> None:
        self._config = config
        self._catalog = Catalog(environment)

    def of(self, table: str, *, writes: bool = True) -> DeltaStore:
        """The store of `otel_spans`, …, `eval_ledger`. `writes`: whether a catalog is asked for a key to write."""
        uri, options = self._config.table_uri(table), self._config.storage_options
        if uri.startswith(SCHEME):
            return CatalogStore(uri, self._catalog, options, writes=writes)
        return DeltaStore(uri, options)
