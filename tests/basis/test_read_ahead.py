"""Work ahead and behind: the order is kept, errors arrive, nothing runs away."""

import threading

import pytest

from condec.basis.read_ahead import ahead, behind


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


def test_behind_works_one_at_a_time_and_finishes() -> None:
    done: list[int] = []
    with behind(done.append) as hand_over:
        for n in range(5):
            hand_over(n)
            assert len(done) >= n  # all before it are done
    assert done == [0, 1, 2, 3, 4]


def test_an_error_behind_is_raised_at_the_next_item_or_the_end() -> None:
    def fail(n: int) -> None:
        raise OSError(f"no room for {n}")

    with pytest.raises(OSError, match="no room for 1"), behind(fail) as hand_over:
        hand_over(1)
    seen = []
    with pytest.raises(OSError, match="no room for 1"), behind(fail) as hand_over:  # noqa: PT012
        hand_over(1)
        hand_over(2)
        seen.append("not reached")
    assert not seen


def test_what_is_under_way_is_finished_when_the_context_dies() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), behind(done.append) as hand_over:  # noqa: PT012
        hand_over(7)
        raise KeyboardInterrupt
    assert done == [7]
