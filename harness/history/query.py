"""Reads recorded results in place with DuckDB. A row that lies in two files counts once."""

from __future__ import annotations

from typing import Any

import duckdb

from harness.errors import UsageError
from harness.history.store import Store

_ATTEMPTS = 5


class History:
    """The table `results` (columns of `records.SCHEMA`) over all files of a store, as they are now."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.connection = duckdb.connect(":memory:")
        for attempt in range(_ATTEMPTS):
            files = store.files()
            if not files:
                raise UsageError(f"no recorded results below {store.location}")
            try:
                self._load(files)
                break
            except duckdb.IOException as error:
                # A recorder packs its files while we read: the list is taken anew.
                if attempt + 1 == _ATTEMPTS or set(files) <= set(store.files()):
                    raise UsageError(f"cannot read recorded results: {_first_line(error)}") from error
            except duckdb.Error as error:
                raise UsageError(f"cannot read recorded results: {_first_line(error)}") from error

    def _load(self, files: list[str]) -> None:
        if not self.store.local:
            self.connection.register_filesystem(self.store.fs)
            files = [self.store.fs.unstrip_protocol(path) for path in files]
        self.connection.execute(
            "CREATE TABLE results AS SELECT * FROM read_parquet(?, union_by_name = true)"
            " QUALIFY row_number() OVER (PARTITION BY id ORDER BY time) = 1",
            [files],
        )

    def select(self, sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a query, as dicts."""
        cursor = self.connection.execute(sql, parameters or [])
        names = [column[0] for column in cursor.description or []]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
