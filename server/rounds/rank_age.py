"""How cold the coldest rank of every task is, worked out in the background once per round."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from server.rounds.coverage import rank_ages
from server.storage.lookup import find_task
from server.storage.store import Store

log = logging.getLogger(__name__)


class RankAge:
    """Remembers the age of the coldest rank of every task.

    An age means drawing the sketches of past rounds again, so nobody waits for it: whoever asks
    gets what is known, and a thread works out what a newly closed round changed.

    Args:
        store: Where rows are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rank-age")
        self._known: dict[str, tuple[int, int]] = {}
        self._asked: set[str] = set()

    def known(self, closed: Mapping[str, int]) -> dict[str, int]:
        """Return the ages that are known, and have the others worked out.

        Args:
            closed: Closed rounds of every task.

        Returns:
            By task: closed rounds since its coldest rank was part of a mean.
        """
        with self._lock:
            for task, count in closed.items():
                is_known = self._known.get(task, (0, 0))[0] == count
                if not is_known and task not in self._asked:
                    self._asked.add(task)
                    self._thread.submit(self._work_out, task)
            return {task: age for task, (_, age) in self._known.items()}

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _work_out(self, task: str) -> None:
        try:
            with self._store.read() as tx:
                closed = sum(row.state == "closed" for row in tx.rounds(task))
                age = int(rank_ages(tx, find_task(tx, task)).max())
            with self._lock:
                self._known[task] = (closed, age)
        except Exception:
            log.exception("the age of the ranks of %s cannot be worked out now", task)
        finally:
            with self._lock:
                self._asked.discard(task)
