import asyncio
import threading

from server.http.request_ids import _current, current_request_id
from server.http.tensor_threads import TensorThreads


def test_only_two_bodies_are_in_memory_at_once_however_many_come():
    threads, barrier = TensorThreads(), threading.Barrier(2)
    names = set()

    def hold() -> None:
        names.add(threading.current_thread().name)
        barrier.wait(20)

    async def hold_all() -> None:
        await asyncio.gather(*(threads.run(hold) for _ in range(8)))

    asyncio.run(hold_all())
    threads.close()
    assert len(names) == 2


def test_work_on_a_body_knows_the_request_it_is_for():
    threads = TensorThreads()

    async def ask() -> str | None:
        _current.set("abc")
        return await threads.run(current_request_id)

    assert asyncio.run(ask()) == "abc"
    threads.close()
