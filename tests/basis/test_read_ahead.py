"""Work ahead: the order is kept, errors arrive, nothing runs away."""

import threading

import pytest

from condec.basis.read_ahead import ahead


@pytest.mark.parametrize("n_workers", [1, 3])
def test_results_come_in_the_order_of_the_items(n_workers: int) -> None:
    gates = [threading.Event() for _ in range(6)]
    gates[-1].set()

    def late(n: int) -> int:
        if n_workers > 1 and n % 3 != 2:
            gates[n].wait(5)  # until the one after it has begun
        if n:
            gates[n - 1].set()
        return 10 * n

    assert list(ahead(late, range(6), n_workers=n_workers)) == [0, 10, 20, 30, 40, 50]


def test_no_further_ahead_than_asked() -> None:
    drawn: list[int] = []

    def items():  # type: ignore[no-untyped-def]
        for n in range(10):
            drawn.append(n)
            yield n

    results = ahead(lambda n: n, items(), n_workers=2)
    assert drawn == []
    next(results)
    assert drawn == [0, 1, 2]
    results.close()
    assert drawn == [0, 1, 2]


def test_the_next_item_is_worked_on_meanwhile() -> None:
    begun = threading.Event()

    def work(n: int) -> int:
        if n == 1:
            begun.set()
        return n

    results = ahead(work, range(3))
    assert next(results) == 0
    assert begun.wait(5)


def test_an_error_comes_in_its_turn() -> None:
    results = ahead(lambda n: 1 // n, (2, 0, 1))
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_is_under_way_is_finished_when_the_items_end_early() -> None:
    done: list[int] = []
    begun = threading.Event()

    def work(n: int) -> None:
        begun.set()
        done.append(n)

    def items():  # type: ignore[no-untyped-def]
        yield 7
        assert begun.wait(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ahead(work, items()))
    assert done == [7]
