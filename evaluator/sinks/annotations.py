"""Results into the annotations table: rows and cursor in one commit of that table."""

import asyncio
from collections.abc import Sequence

import pyarrow as pa

from evaluator.errors import SinkError, TableError
from evaluator.feedback import Assessment, Erased
from evaluator.tables.annotations import annotation_rows, erase, open_annotations
from evaluator.tables.delta import DeltaStore
from evaluator.tables.snapshot import CommitConflict


class AnnotationsSink:
    """A Sink whose cursor lives in the annotations table itself, under the ledger's id."""

    name = "annotations"

    def __init__(self, store: DeltaStore, ledger_id: str) -> None:
        self._store = store
        self._ledger_id = ledger_id

    async def cursor(self) -> int:
        try:
            snapshot = await asyncio.to_thread(self._store.open)
        except TableError as error:
            raise SinkError(str(error)) from error
        return snapshot.transaction(self._ledger_id) or 0

    def due(self) -> bool:
        return False

    def waiting(self) -> int:
        return 0

    async def publish(self, assessments: Sequence[Assessment], upto: int) -> None:
        await asyncio.to_thread(self._append, assessments, upto)

    async def forget(self, erased: Sequence[Erased]) -> None:
        try:
            await asyncio.to_thread(erase, self._store, erased)
        except TableError as error:
            raise SinkError(str(error)) from error

    def _append(self, assessments: Sequence[Assessment], upto: int) -> None:
        while not self._appended(assessments, upto):
            pass  # another publisher moved the cursor: look where it is now

    def _appended(self, assessments: Sequence[Assessment], upto: int) -> bool:
        """Append what the table does not have yet; False when another publisher came between."""
        try:
            snapshot = open_annotations(self._store)
            cursor = snapshot.transaction(self._ledger_id) or 0
            if upto <= cursor:
                return True
            if not pa.types.is_string(snapshot.schema.field("value").type):
                raise SinkError(
                    f"{self._store.uri}: its `value` column is not text, and this Delta library cannot append "
                    "VARIANT; publish through MLflow instead (`publish: [mlflow]`)"
                )
            fresh = [assessment for assessment in assessments if assessment.seq > cursor]
            snapshot.append(annotation_rows(fresh), {self._ledger_id: upto})
        except CommitConflict:
            return False
        except TableError as error:
            raise SinkError(str(error)) from error
        return True
