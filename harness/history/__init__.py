"""Recorded results: immutable Parquet files that many machines may write at once, queried in place.

`records` says what a row is, `store` writes and lists files, `query` reads them with DuckDB, `recorder` appends the
verdicts of one session, `regression` finds error statistics that left the spread they had.
"""
