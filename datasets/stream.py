"""`Stream`: batches one after another, from any of them on, made ahead by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Stream(Iterator[T], Generic[T]):
    """An iterator over numbered batches that can pass over the first ones.

    Args:
        make: number of a batch -> the batches from it on.
        count: batches in all.
    """

    def __init__(self, make: Callable[[int], Iterator[T]], count: int) -> None:
        self._make, self._count, self._first = make, count, 0
        self._found: Iterator[T] | None = None

    def skip(self, number: int) -> int:
        """Pass over batches without reading them; return how many there were to pass over."""
        if self._found is not None:
            raise RuntimeError("batches can be passed over before the first is read alone")
        passed = min(number, self._count - self._first)
        self._first += passed
        return passed

    def __next__(self) -> T:
        if self._found is None:
            self._found = self._make(self._first)
        return next(self._found)


def ahead(make: Callable[[int], T], first: int, count: int, depth: int) -> Iterator[T]:
    """Yield ``make(first) .. make(count - 1)``, made in order by one thread, some of them ahead.

    Args:
        make: what the thread does; its exceptions are raised here.
        first: number of the first.
        count: number behind the last.
        depth: how many are made ahead; 0 makes each when it is asked for, without a thread.
    """
    if not depth:
        yield from map(make, range(first, count))
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="featemb-batches")
    coming: deque[Future[T]] = deque()
    try:
        for number in range(first, count):
            coming.append(pool.submit(make, number))
            if len(coming) > depth:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:  # reached too where nobody asks for more
        pool.shutdown(wait=False, cancel_futures=True)
