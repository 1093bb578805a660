"""What was committed, told outside the file: DuckDB drops a damaged tail of its log without a word."""

from __future__ import annotations

from pathlib import Path


class Mark:
    """The number of the last load, beside the store's file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, store_id: str, batch: int) -> None:
        try:
            self._path.write_text(f"{store_id} {batch}\n")
        except OSError:
            pass  # a full disk: the mark stays behind, which claims too little, never too much

    def ahead(self, store_id: str, batch: int) -> int:
        """How many loads of that file were committed once and are no longer in it."""
        try:
            marked_id, marked = self._path.read_text().split()
        except (OSError, ValueError):
            return 0
        return max(0, int(marked) - batch) if marked_id == store_id and marked.isdigit() else 0
