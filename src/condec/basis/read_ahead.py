"""Overlap: the next batches are read while one is computed, and a shard is written meanwhile."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, n_workers: int = 1
) -> Iterator[Result]:
    """Yield results of `function`, in the order of the items, worked out ahead of their use.

    It runs in other threads; its errors are raised here, in the turn of their item. Items are drawn
    only as far ahead as there are workers, and one more.

    >>> list(ahead(lambda n: n * n, range(5)))
    [0, 1, 4, 9, 16]
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_workers, thread_name_prefix="condec-ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
