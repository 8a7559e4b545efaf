"""The SQLite file of a journal: its tables, and how it is opened.

Owns the settings. It must not know what the tables hold.
"""

import sqlite3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS states (run TEXT, field BLOB, data BLOB, PRIMARY KEY (run, field));
CREATE TABLE IF NOT EXISTS answered (run TEXT, message TEXT, reply BLOB, UNIQUE (run, message));
CREATE TABLE IF NOT EXISTS crashes (run TEXT, message TEXT, count INTEGER, PRIMARY KEY (run, message));
CREATE TABLE IF NOT EXISTS dead (message TEXT PRIMARY KEY, run TEXT, fields BLOB, crashes INTEGER, at REAL);
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, absent_since REAL);
"""

#: Bytes that the file of the write-ahead log keeps.
_LOG = 4 * 1024**2


def open_database(path: str) -> sqlite3.Connection:
    """Open a file, or create it, so that it can shrink.

    Raises:
        sqlite3.DatabaseError: it cannot be opened or is damaged.
    """
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if db.execute("PRAGMA auto_vacuum").fetchone() != (2,):  # a file that was made without it
            db.execute("VACUUM")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA journal_size_limit = {_LOG}")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
