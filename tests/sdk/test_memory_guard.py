import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from edge_sdk.errors import MemoryPressure, ModelError, OutOfMemory
from edge_sdk.memory.memory_guard import (
    MemoryGuard,
    choose_limit,
    default_floor_bytes,
    is_out_of_memory,
)
from edge_sdk.memory.watchdog import RssWatchdog, resident_bytes

ROOT = Path(__file__).parent.parent.parent
MB = 1 << 20
PLENTY = 1 << 40

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA limits mmap on Linux")

PRELUDE = """
import json, resource
import numpy as np
from edge_sdk.memory.data_limit import DataLimit, read_usage
from edge_sdk.device import peak_rss_bytes
from edge_sdk.memory.heap import release_freed_memory
from edge_sdk.memory.memory_guard import MemoryGuard, is_out_of_memory
MB = 1 << 20
def guard_of(budget):
    return MemoryGuard(budget, available=lambda: 1 << 40, floor_bytes=0, limit=DataLimit(budget))
def limits():
    return list(resource.getrlimit(resource.RLIMIT_DATA))
def answer(**facts):
    print(json.dumps({**facts, "peak": peak_rss_bytes()}))
def fill(pieces, size):
    try:
        while True:
            pieces.append(np.ones(size, np.uint8))
    except MemoryError:
        return True
"""


def in_child(script):
    """Run a script in a fresh interpreter and return the facts that it answers."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def guard_with(available, **settings):
    """A guard with a budget nothing reaches, for what it does about the rest of the device."""
    return MemoryGuard(PLENTY, available=available, limit=RssWatchdog(PLENTY), **settings)


class Device:
    """A device whose free memory is scripted over a time that passes only in sleeps."""

    def __init__(self, free_at):
        self.now = 1000.0
        self.began = self.now
        self.free_at = free_at

    def available(self):
        return self.free_at(self.now - self.began)

    def sleep(self, seconds):
        assert 0 < seconds <= 1
        self.now += seconds

    def clock(self):
        return self.now


# the hard limit


@linux_only
def test_allocation_beyond_the_budget_raises_and_the_process_goes_on_within_it():
    facts = in_child("""
        with guard_of(300 * MB) as guard:
            try:
                np.ones(1000 * MB, np.uint8)
            except MemoryError as error:
                refused = is_out_of_memory(error)
            guard.check()
            total = int(np.ones(150 * MB, np.uint8).sum())
            guard.check()
        answer(refused=refused, total=total)
    """)
    assert facts["refused"]
    assert facts["total"] == 150 * MB
    assert 150 * MB < facts["peak"] <= 300 * MB


@linux_only
def test_budget_can_be_used_to_the_last_few_megabytes():
    facts = in_child("""
        with guard_of(300 * MB):
            refused = fill([], 4 * MB)
        answer(refused=refused)
    """)
    assert facts["refused"]
    assert 275 * MB < facts["peak"] <= 300 * MB


@linux_only
def test_memory_trimmed_and_taken_again_stays_within_the_budget():
    """Small pieces lie in the heap: freed and trimmed, they are still address space."""
    facts = in_child("""
        def small_pieces():
            return [np.ones(60_000, np.uint8) for _ in range(2500)]
        small_pieces()
        pieces, more = [], []
        with guard_of(300 * MB) as guard:
            pieces = small_pieces()
            full = read_usage()
            del pieces[::2], pieces[1::2]
            release_freed_memory()
            trimmed = read_usage()
            guard.check()
            try:
                more = small_pieces()
            except MemoryError:
                pass
            fill(pieces, 4 * MB)
        answer(
            given_back=full.used_bytes - trimmed.used_bytes,
            unmapped=full.data_bytes - trimmed.data_bytes,
        )
    """)
    assert facts["given_back"] > 50 * MB, "the heap was trimmed"
    assert facts["unmapped"] < 20 * MB, "but its address space stayed"
    assert facts["peak"] <= 300 * MB


@linux_only
def test_heap_fragmented_before_the_guard_stays_within_the_budget():
    facts = in_child("""
        pieces = [np.ones(60_000, np.uint8) for _ in range(2500)]
        del pieces[::2]
        release_freed_memory()
        with guard_of(300 * MB):
            try:
                more = [np.ones(60_000, np.uint8) for _ in range(1250)]
            except MemoryError:
                pass
            fill(pieces, 4 * MB)
        answer()
    """)
    assert 200 * MB < facts["peak"] <= 300 * MB


@linux_only
def test_threads_started_under_the_guard_do_not_eat_the_budget():
    """Each reserves megabytes of stack and writes some kilobytes of it."""
    facts = in_child("""
        import threading
        done = threading.Event()
        with guard_of(400 * MB) as guard:
            for _ in range(16):
                threading.Thread(target=done.wait).start()
            guard.check()
            refused = fill([], 4 * MB)
        done.set()
        answer(refused=refused)
    """)
    assert facts["refused"]
    assert 370 * MB < facts["peak"] <= 400 * MB


@linux_only
def test_reserve_that_lies_where_a_heap_could_begin_does_not_eat_the_budget():
    """The kernel chooses the place: one reserve in 32 begins at such an address by chance."""
    facts = in_child("""
        import mmap
        HEAP = 64 * MB
        def reserve(size):
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
        areas = [reserve(HEAP)]
        while np.frombuffer(areas[-1], np.uint8).ctypes.data % HEAP:
            areas += [reserve(2 * MB), reserve(HEAP)]
        with guard_of(400 * MB):
            refused = fill([], 4 * MB)
        answer(refused=refused)
    """)
    assert facts["refused"]
    assert 370 * MB < facts["peak"] <= 400 * MB


@linux_only
def test_weights_mapped_from_a_file_count_once(tmp_path):
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        for _ in range(100):
            file.write(b"w" * MB)
    facts = in_child(f"""
        import mmap
        with guard_of(400 * MB) as guard:
            file = open({str(weights)!r}, "r+b")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            total = int(np.frombuffer(mapped, np.uint8).sum(dtype=np.int64))
            guard.check()
            refused = fill([], 4 * MB)
        answer(total=total, refused=refused)
    """)
    assert facts["total"] == 100 * MB * ord("w")
    assert 370 * MB < facts["peak"] <= 400 * MB


@linux_only
def test_limits_are_restored_exactly_also_after_an_exception_nested_and_again():
    facts = in_child("""
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 35, 1 << 36))
        before, seen = limits(), []
        outer, inner = guard_of(400 * MB), guard_of(300 * MB)
        try:
            with outer:
                in_outer = limits()
                with inner:
                    in_inner = limits()
                    outer.check()
                    seen.append(limits() == in_inner)
                seen.append(limits() == in_outer)
                with outer:
                    pass
                seen.append(limits() == in_outer)
                raise KeyError
        except KeyError:
            seen.append(limits() == before)
        with outer:
            seen.append(before[0] > limits()[0] > in_inner[0])
        seen.append(limits() == before)
        answer(seen=seen, hard=in_inner[1])
    """)
    assert facts["seen"] == [True] * 6
    assert facts["hard"] == 1 << 36


@linux_only
def test_stricter_limit_of_the_user_is_kept():
    facts = in_child("""
        stricter = read_usage().data_bytes + 50 * MB
        resource.setrlimit(resource.RLIMIT_DATA, (stricter, resource.RLIM_INFINITY))
        with guard_of(1000 * MB):
            answer(kept=limits()[0] == stricter)
    """)
    assert facts["kept"]


@linux_only
def test_budget_already_spent_is_refused_with_both_numbers_and_sets_no_limit():
    facts = in_child("""
        from edge_sdk.errors import OutOfMemory
        from edge_sdk.quantities import format_bytes
        held, before, entered = np.ones(100 * MB, np.uint8), limits(), False
        try:
            with guard_of(100 * MB):
                entered = True
        except OutOfMemory as error:
            facts = error
        answer(
            entered=entered,
            needed=facts.needed_bytes,
            budget=facts.budget_bytes,
            named=[format_bytes(facts.needed_bytes) in str(facts), "105 MB" in str(facts)],
            restored=limits() == before,
        )
    """)
    assert not facts["entered"]
    assert facts["needed"] > facts["budget"] == 100 * MB
    assert facts["named"] == [True, True]
    assert facts["restored"]


@linux_only
def test_check_reads_few_files_and_starts_nothing():
    """It runs between any two steps: about 20 reads of the kernel's own files, a millisecond."""
    facts = in_child("""
        import sys
        seen = []
        sys.addaudithook(lambda event, _: seen.append(event))
        with guard_of(300 * MB) as guard:
            guard.check()
            seen.clear()
            guard.check()
            found = list(seen)
        answer(opened=found.count("open"), others=sorted(set(found) - {"open"}))
    """)
    assert 1 <= facts["opened"] <= 24
    assert not [x for x in facts["others"] if x.startswith(("subprocess", "os.", "socket"))]


@linux_only
def test_torch_out_of_budget_is_recognised_and_trains_on_with_less():
    facts = in_child("""
        import torch
        def train(width):
            layer = torch.nn.Linear(width, width)
            optimizer = torch.optim.AdamW(layer.parameters())
            for _ in range(2):
                layer(torch.ones(4, width)).square().mean().backward()
                optimizer.step()
            return bool(torch.isfinite(layer.weight).all())
        train(8)
        budget = read_usage().used_bytes + 120 * MB
        with guard_of(budget) as guard:
            try:
                train(4096)
            except RuntimeError as error:
                refused = is_out_of_memory(error)
            guard.check()
            trained = train(1024)
            guard.check()
        answer(refused=refused, trained=trained, budget=budget)
    """)
    assert facts["refused"]
    assert facts["trained"]
    assert facts["peak"] <= facts["budget"]


@linux_only
def test_linux_refuses_allocations_where_the_kernel_can():
    facts = in_child("""
        from edge_sdk.memory.memory_guard import choose_limit
        before = limits()
        answer(kind=type(choose_limit(300 * MB)).__name__, restored=limits() == before)
    """)
    assert facts["kind"] == "DataLimit"
    assert facts["restored"]


def test_watchdog_is_chosen_where_the_limit_is_not_enforced(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isinstance(choose_limit(PLENTY), RssWatchdog)


@linux_only
def test_watchdog_is_chosen_where_the_kernel_ignores_the_limit(monkeypatch):
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    assert isinstance(choose_limit(PLENTY), RssWatchdog)


# the watchdog


def test_watchdog_raises_at_the_next_check_for_a_peak_that_is_over():
    facts = in_child("""
        import time
        from edge_sdk.errors import OutOfMemory
        from edge_sdk.memory.watchdog import RssWatchdog
        guard = MemoryGuard(
            300 * MB, available=lambda: 1 << 40, floor_bytes=0, limit=RssWatchdog(300 * MB)
        )
        raised = []
        with guard:
            guard.check()
            peak = np.ones(400 * MB, np.uint8)
            time.sleep(0.3)
            del peak
            for _ in range(2):
                try:
                    guard.check()
                except OutOfMemory as error:
                    raised.append([error.needed_bytes, error.budget_bytes])
        answer(raised=raised)
    """)
    ((needed, budget),) = facts["raised"]
    assert needed > 400 * MB
    assert budget == 300 * MB


def test_watchdog_refuses_a_budget_already_spent_and_starts_no_thread():
    threads = threading.active_count()
    with pytest.raises(OutOfMemory) as refused, RssWatchdog(MB):
        pass
    assert refused.value.budget_bytes == MB
    assert refused.value.needed_bytes > MB
    assert threading.active_count() == threads


def test_watchdog_ends_its_thread_also_after_an_exception():
    threads = threading.active_count()
    watchdog = RssWatchdog(PLENTY)

    def fail_under_watch():
        with watchdog:
            assert threading.active_count() == threads + 1
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail_under_watch()
        assert threading.active_count() == threads


def test_watchdog_that_cannot_sample_says_so_and_checks_still_do(caplog):
    asked = threading.Event()

    def resident():
        if threading.current_thread() is not threading.main_thread():
            asked.set()
            raise OSError("no such process")
        return resident_bytes()

    with RssWatchdog(PLENTY, resident=resident, period_s=0.001) as watchdog:
        assert asked.wait(10)
        watchdog.check()
    assert "watchdog stopped" in caplog.text


# the owner's own programs


def test_training_pauses_until_memory_is_back_and_reports_the_pause():
    device = Device(lambda elapsed: 100 * MB if elapsed < 7 else 600 * MB)
    pauses = []
    guard = guard_with(
        device.available,
        floor_bytes=500 * MB,
        on_pause=pauses.append,
        clock=device.clock,
        sleep=device.sleep,
    )
    with guard:
        guard.check()
        assert device.now - device.began == pytest.approx(7, abs=1)
        guard.check()
    assert pauses == [device.now - device.began]


def test_training_that_leaves_the_floor_free_never_pauses():
    pauses = []
    device = Device(lambda _: 500 * MB)
    with guard_with(
        device.available, floor_bytes=500 * MB, on_pause=pauses.append, sleep=device.sleep
    ) as guard:
        guard.check()
    assert device.now == device.began
    assert pauses == []


def test_patience_ends_in_memory_pressure_with_both_numbers():
    device = Device(lambda _: 100 * MB)
    pauses = []
    guard = guard_with(
        device.available,
        floor_bytes=500 * MB,
        patience_s=3.2,
        on_pause=pauses.append,
        clock=device.clock,
        sleep=device.sleep,
    )
    with guard, pytest.raises(MemoryPressure, match=r"105 MB.*3 s.*524 MB") as refused:
        guard.check()
    assert device.now - device.began == pytest.approx(3.2)
    assert (refused.value.needed_bytes, refused.value.budget_bytes) == (500 * MB, 100 * MB)
    assert is_out_of_memory(refused.value)
    assert pauses == []


@linux_only
def test_pause_first_gives_back_what_training_freed():
    facts = in_child("""
        pieces = [np.ones(60_000, np.uint8) for _ in range(2500)]
        del pieces[::2]
        used = read_usage().used_bytes
        floor = 50 * MB
        guard = MemoryGuard(
            500 * MB,
            available=lambda: used - read_usage().used_bytes,
            floor_bytes=floor,
            limit=DataLimit(500 * MB),
            sleep=lambda seconds: 1 / 0,
        )
        with guard:
            guard.check()
        answer(given_back=used - read_usage().used_bytes)
    """)
    assert facts["given_back"] >= 50 * MB


def test_guard_without_settings_measures_this_device():
    with MemoryGuard(PLENTY, limit=RssWatchdog(PLENTY), patience_s=0) as guard:
        guard.check()


@linux_only
def test_room_left_in_the_budget_is_not_taken_for_the_memory_of_the_device():
    """The limit of the guard is itself a limit of the process: it must not cause a pause."""
    facts = in_child("""
        budget = read_usage().used_bytes + 60 * MB
        with MemoryGuard(budget, floor_bytes=100 * MB, patience_s=0) as guard:
            guard.check()
            room = limits()[0] - read_usage().data_bytes
        answer(room=room)
    """)
    assert facts["room"] < 60 * MB


@pytest.mark.parametrize(
    ("total", "floor"),
    [(16_000 * MB, 800 * MB), (4096 * MB, 256 * MB), (1024 * MB, 128 * MB), (512 * MB, 64 * MB)],
)
def test_default_floor_is_a_twentieth_but_neither_too_little_nor_most_of_a_small_board(
    total, floor
):
    assert default_floor_bytes(total) == floor


# recognising it


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which cannot be raised without torch."""


NVML = 'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1131'


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemory("spent"),
        OutOfMemoryError("CUDA"),
        type("Narrower", (OutOfMemoryError,), {})("CUDA"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("unable to mmap 80 bytes from file </m>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(NVML),
        OSError(errno.ENOMEM, "no"),
    ],
)
def test_failed_allocation_is_recognised_also_as_a_cause(error):
    assert is_out_of_memory(error)
    wrapped = ModelError("cannot be loaded")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("not enough memory"),
        KeyError("OutOfMemoryError"),
        ModelError("cannot be loaded"),
    ],
)
def test_other_errors_are_not_taken_for_a_failed_allocation(error):
    assert not is_out_of_memory(error)


def test_guard_imports_nothing_heavy():
    facts = in_child("""
        import sys
        guard_of(300 * MB).__enter__()
        answer(heavy=sorted({"torch", "transformers"} & sys.modules.keys()))
    """)
    assert facts["heavy"] == []
