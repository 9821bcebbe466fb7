"""MLflow makes the tables of a new store by dozens of migrations, which takes seconds: made once here, then copied."""

import sqlite3
from collections.abc import Callable
from typing import Any


def from_the_first(make: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return what makes a store's tables: the first store's by `make`, those of later ones as copies of these.

    Args:
        make: MLflow's own function; it takes an engine of SQLAlchemy.
    """
    tables = sqlite3.connect(":memory:", check_same_thread=False)
    made = False

    def make_or_copy(engine: Any) -> None:
        nonlocal made
        if engine.dialect.name != "sqlite" or not engine.url.database:
            make(engine)
            return
        with sqlite3.connect(engine.url.database) as store:
            empty = store.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
            if empty and made:
                tables.backup(store)
                return
        make(engine)
        if empty:
            with sqlite3.connect(engine.url.database) as store:
                store.backup(tables)
            made = True

    return make_or_copy
