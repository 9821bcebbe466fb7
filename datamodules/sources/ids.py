"""A set of ids that lies on disk: memory does not grow with it."""

import hashlib
import sqlite3

CACHE = 2 << 10  # KiB of the set that stay in memory
SETTINGS = f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE}"


class Ids:
    """Ids seen so far, by a 128-bit hash, in a temporary SQLite file that goes with the object.

    Of 100 million different ids, two share a hash with a probability of 1.5e-23. The file takes about 30 bytes an id,
    in the folder that SQLITE_TMPDIR or TMPDIR names, or in /var/tmp.
    """

    def __init__(self) -> None:
        self.file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self.file.executescript(f"{SETTINGS}; CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID; BEGIN")
        self.cursor = self.file.cursor()
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, name: str) -> bool:
        """Add an id; return True when it is new."""
        key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        new = self.cursor.execute("INSERT OR IGNORE INTO ids VALUES (?)", (key,)).rowcount > 0
        self.count += new
        return new
