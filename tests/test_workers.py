"""One pool of worker threads: of the size that was asked for, asleep when idle, whole again after a fork."""

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from scratchnet import workers


def run(code, **environment):
    """Run code in a fresh process: the pool is made once for each."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_size_is_the_number_of_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.delenv("SCRATCHNET_THREADS", raising=False)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5})
        assert workers.size() == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert workers.size() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.size() == 1


def test_the_size_can_be_set(monkeypatch):
    monkeypatch.setenv("SCRATCHNET_THREADS", "5")
    assert workers.size() == 5


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", " ", "²"])
def test_a_size_that_makes_no_sense(monkeypatch, value):
    monkeypatch.setenv("SCRATCHNET_THREADS", value)
    with pytest.raises(ValueError, match="SCRATCHNET_THREADS must be a whole number above zero, not"):
        workers.size()


def test_as_many_functions_run_at_once():
    code = """
import threading
from scratchnet import workers
barrier = threading.Barrier(3, timeout=20)  # passes when three wait at once
futures = [workers.submit(barrier.wait) for _ in range(3)]
print(len({f.result() for f in futures}), threading.active_count() - 1)
"""
    assert run(code, SCRATCHNET_THREADS="3") == "3 3"


def test_results_and_arguments():
    futures = [workers.submit(divmod, n, 4) for n in range(20)]
    assert [f.result() for f in futures] == [divmod(n, 4) for n in range(20)]


def test_an_exception_comes_back_through_the_future():
    future = workers.submit(int, "seven")
    with pytest.raises(ValueError, match="seven"):
        future.result()
    assert workers.submit(int, "7").result() == 7, "the worker must survive it"


def test_work_runs_beside_the_main_thread():
    assert workers.submit(threading.current_thread).result() is not threading.main_thread()


def test_idle_workers_do_not_spin():
    code = """
import time
from scratchnet import workers
for future in [workers.submit(time.sleep, 0.01) for _ in range(8)]:
    future.result()
start = time.process_time()
time.sleep(0.5)
print(time.process_time() - start)
"""
    assert float(run(code, SCRATCHNET_THREADS="4")) < 0.1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_gets_a_pool_of_its_own():
    code = """
import os, threading
from scratchnet import workers
workers.submit(pow, 2, 3).result()
held = workers._lock
held.acquire()  # as if another thread were submitting at the moment of the fork
child = os.fork()
if child == 0:
    os._exit(0 if workers.submit(pow, 2, 5).result(timeout=20) == 32 else 1)
held.release()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), workers.submit(pow, 2, 4).result())
"""
    assert run(code) == "0 16"


def test_the_program_ends_although_workers_wait():
    assert run("from scratchnet import workers; workers.submit(pow, 2, 3); print('end')") == "end"


# run_parallel


def test_run_parallel_runs_all_tasks_at_once():
    code = """
import threading
from scratchnet import workers
barrier = threading.Barrier(3, timeout=20)  # passes when three wait at once
workers.run_parallel([barrier.wait] * 3)
print("met")
"""
    assert run(code, SCRATCHNET_THREADS="3") == "met"


def test_run_parallel_with_nothing_or_one_task():
    workers.run_parallel([])
    threads = []
    workers.run_parallel([lambda: threads.append(threading.current_thread())])
    assert threads == [threading.current_thread()], "one task needs no worker"


def test_run_parallel_helps_itself_when_the_pool_is_busy():
    code = """
import threading
from scratchnet import workers
release, done = threading.Event(), []
busy = [workers.submit(release.wait, 20) for _ in range(2)]
workers.run_parallel([lambda n=n: done.append(n) for n in range(5)])
print(sorted(done), any(future.done() for future in busy))
release.set()
"""
    assert run(code, SCRATCHNET_THREADS="2") == "[0, 1, 2, 3, 4] False"


def test_run_parallel_within_the_pool():
    code = """
from scratchnet import workers
done = []
task = lambda: workers.run_parallel([lambda: done.append(1)] * 3)
for future in [workers.submit(task) for _ in range(4)]:
    future.result(timeout=20)
print(len(done))
"""
    assert run(code, SCRATCHNET_THREADS="1") == "12"


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_run_parallel_raises_what_a_task_raised_and_leaves_none_running(failing):
    running, lock = [0], threading.Lock()

    def task(number):
        with lock:
            running[0] += 1
        try:
            threading.Event().wait(0.05)
            if number == failing:
                raise KeyError(number)
        finally:
            with lock:
                running[0] -= 1

    with pytest.raises(KeyError, match=str(failing)):
        workers.run_parallel([lambda n=n: task(n) for n in range(4)])
    assert running == [0]


def test_run_parallel_lets_go_of_what_its_tasks_held():
    class Large:
        pass

    def fail(large):
        raise KeyError

    large = Large()
    gone = weakref.ref(large)
    with pytest.raises(KeyError):
        workers.run_parallel([int, lambda large=large: fail(large), int])
    del large
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to a thread")
def test_run_parallel_waits_for_its_helpers_when_interrupted():
    """Ctrl-C comes twice: while the caller works, and while it waits for its helper."""
    code = """
import signal, threading, time
from scratchnet import workers
signal.signal(signal.SIGINT, signal.default_int_handler)
main, done = threading.main_thread().ident, []
def slow():
    for _ in range(2):
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)
    time.sleep(0.2)
    done.append("helper")
for _ in range(2):  # the pool is whole afterwards
    try:
        workers.run_parallel([lambda: time.sleep(0.3), slow])
    except KeyboardInterrupt:
        done.append("interrupted")
print(*done)
"""
    assert run(code, SCRATCHNET_THREADS="2") == "helper interrupted helper interrupted"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such signal")
def test_what_any_signal_raises_waits_for_the_helpers_too():
    code = """
import signal, time
from scratchnet import workers
def ring(*_):
    raise TimeoutError
signal.signal(signal.SIGALRM, ring)
done = []
def slow():
    time.sleep(0.3)
    done.append("helper")
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    workers.run_parallel([lambda: time.sleep(0.05), slow])
except TimeoutError:
    done.append("alarm")
print(*done, [helper.is_free for helper in workers._helpers])
"""
    assert run(code, SCRATCHNET_THREADS="2") == "helper alarm [True]"


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to a thread")
def test_an_interruption_is_raised_although_our_own_task_failed_as_well():
    code = """
import signal, threading, time
from scratchnet import workers
signal.signal(signal.SIGINT, signal.default_int_handler)
main = threading.main_thread().ident
def fail():
    time.sleep(0.1)
    raise KeyError
def slow():
    time.sleep(0.2)
    signal.pthread_kill(main, signal.SIGINT)
    time.sleep(0.1)
try:
    workers.run_parallel([fail, slow])
except KeyboardInterrupt as interruption:
    print(type(interruption.__context__).__name__)
"""
    assert run(code, SCRATCHNET_THREADS="2") == "KeyError"


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to a thread")
@pytest.mark.parametrize("what", ["run_parallel", "run_phases", "one_blas_thread"])
def test_interrupted_anywhere_at_all_nothing_hangs_or_is_lost(what):
    """A hundred interruptions a few milliseconds apart, between any two instructions."""
    code = f"""
import faulthandler, os, random, signal, subprocess, sys
import numpy as np
from threadpoolctl import threadpool_info
from scratchnet import workers
faulthandler.dump_traceback_later(45, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)
x = np.ones((2, 20000), np.float32)
tasks = [lambda row=row: np.negative(row, out=row) for row in x]
def one_blas_thread():
    with workers.one_blas_thread():
        tasks[0]()
call = {{
    "run_parallel": lambda: workers.run_parallel(tasks),
    "run_phases": lambda: workers.run_phases([tasks] * 6, lambda k: None),
    "one_blas_thread": one_blas_thread,
}}[{what!r}]
def threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
call()
helpers, before = len(workers._helpers), threads()
send = "import os, sys, time\\nfor line in sys.stdin: time.sleep(float(line)); os.kill(int(sys.argv[1]), 2)"
send = [sys.executable, "-c", send, str(os.getpid())]
sender = subprocess.Popen(send, stdin=subprocess.PIPE, text=True, start_new_session=True)
for _ in range(100):
    try:
        sender.stdin.write(f"{{random.uniform(0.0003, 0.004)}}\\n")
        sender.stdin.flush()
        while True:
            call()
    except KeyboardInterrupt:
        pass
    call()
    assert all(helper.is_free for helper in workers._helpers) and len(workers._helpers) == helpers
    assert threads() == before and not workers._blas_users
sender.kill()
print("whole")
"""
    assert run(code, SCRATCHNET_THREADS="2") == "whole"


def test_the_garbage_collector_may_cancel_what_was_submitted_at_any_moment():
    """It ends generators that nobody reads any more, at any allocation, also at those of this module."""
    code = """
import faulthandler, gc, threading
from scratchnet import workers
faulthandler.dump_traceback_later(45, exit=True)
release = threading.Event()
busy = [workers.submit(release.wait, 40) for _ in range(2)]
def ahead(self):
    future = workers.submit(int)
    try:
        yield
    finally:
        future.cancel()
class Loop:
    pass
gc.set_threshold(5)
for _ in range(300):
    loop = Loop()  # a cycle: only the collector finds it
    loop.generator, loop.self = ahead(loop), loop
    next(loop.generator)
    with workers.one_blas_thread():
        workers.run_parallel([int, int])
release.set()
del loop
gc.collect()
[future.result(20) for future in busy]
workers.submit(int).result(20)
print(len(workers._submitted))
"""
    assert run(code, SCRATCHNET_THREADS="2") in ("0", "1")  # the last one may just be ending


def test_run_parallel_uses_no_more_threads_than_it_was_given():
    code = """
import threading, time
from scratchnet import workers
for n in (2, 5, 3):
    seen = set()
    workers.run_parallel([lambda: (seen.add(threading.get_ident()), time.sleep(0.02))] * n)
    print(len(seen), threading.active_count(), end=" ")
"""
    assert run(code, SCRATCHNET_THREADS="3") == "2 2 3 3 3 3"


def blas_threads():
    from threadpoolctl import threadpool_info

    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_one_blas_thread_is_restored_by_the_last_to_leave():
    before = blas_threads()
    with workers.one_blas_thread():
        assert blas_threads() <= {1}
        with workers.one_blas_thread():
            pass
        assert blas_threads() <= {1}
    assert blas_threads() == before
    with pytest.raises(ZeroDivisionError), workers.one_blas_thread():
        1 / 0  # noqa: B018
    assert blas_threads() == before


def test_one_blas_thread_from_any_thread():
    """Some releases of threadpoolctl let only the first thread that set a limit change it, silently."""
    before = blas_threads()
    with workers.one_blas_thread():
        pass
    seen = []

    def look():
        with workers.one_blas_thread():
            seen.append(blas_threads())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen[0] <= {1}
    assert blas_threads() == before


# run_phases


def test_run_phases_runs_phases_in_order_and_the_tasks_of_each_at_once():
    code = """
import threading
from scratchnet import workers
meet = threading.Barrier(3, timeout=20)  # passes when three wait at once
order, lock = [], threading.Lock()
def task(phase, thread):
    meet.wait()
    with lock:
        order.append((phase, thread, threading.get_ident()))
phases = [[lambda p=p, t=t: task(p, t) for t in range(3)] for p in range(50)]
workers.run_phases(phases, lambda k: order.append((k, 3, 0)))
assert [phase for phase, *_ in order] == [p for p in range(50) for _ in range(4)]
assert all(order[4 * p + 3] == (p, 3, 0) for p in range(50)), "ended comes when all have ended"
print(len({(thread, ident) for _, thread, ident in order}))
"""
    assert run(code, SCRATCHNET_THREADS="3") == "4"


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_run_phases_with_tasks_that_are_missing(threads):
    code = f"""
import time
from scratchnet import workers
seen = []
def task(k, t):
    time.sleep(0.001 * ((k + t) % 3))
    seen.append(k)
threads = range({threads})
phases = [[(lambda k=k, t=t: task(k, t)) if (k + t) % 2 else None for t in threads] for k in range(40)]
workers.run_phases(phases, lambda k: None)
workers.run_phases([], lambda k: None)
assert seen == sorted(seen) and len(seen) == sum(task is not None for phase in phases for task in phase)
print("done")
"""
    assert run(code, SCRATCHNET_THREADS=str(threads)) == "done"


def test_run_phases_helps_itself_when_the_others_are_busy():
    code = """
import threading
from scratchnet import workers
release, done = threading.Event(), []
busy = [workers.submit(release.wait, 20) for _ in range(2)]
tasks = [lambda k=k: done.append(k) for k in range(3)]
workers.run_phases([[task, None, task] for task in tasks], done.append)
print(done, any(future.done() for future in busy))
release.set()
"""
    assert run(code, SCRATCHNET_THREADS="3") == "[0, 0, 0, 1, 1, 1, 2, 2, 2] False"


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_run_phases_raises_what_a_task_raised_and_leaves_none_running(failing):
    code = f"""
import threading
from scratchnet import workers
running, later = [], []
def task(k, thread):
    running.append(thread)
    try:
        if k == 2 and thread == {failing}:
            raise KeyError(thread)
        threading.Event().wait(0.02)
        if k > 2:
            later.append(thread)
    finally:
        running.remove(thread)
phases = [[lambda k=k, t=t: task(k, t) for t in range(3)] for k in range(5)]
for _ in range(3):  # the pool is whole afterwards
    try:
        workers.run_phases(phases, lambda k: None)
    except KeyError as error:
        print(error, running, later, end=" ")
"""
    assert run(code, SCRATCHNET_THREADS="3").split("[] []") == [
        *[f"{failing} ", f" {failing} ", f" {failing} "],
        "",
    ]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signal to a thread")
@pytest.mark.parametrize("long", [0, 1])  # which thread is working; the other waits for it
def test_run_phases_ends_when_interrupted(long):
    code = f"""
import signal, threading, time
from scratchnet import workers
signal.signal(signal.SIGINT, signal.default_int_handler)
main, ended = threading.main_thread().ident, []
def work():
    time.sleep(0.3)
def phases():
    yield from [[work if t == {long} else None for t in range(2)] for _ in range(2)]
for _ in range(3):  # the pool is whole afterwards
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    start = time.monotonic()
    try:
        workers.run_phases(list(phases()), ended.append)
    except KeyboardInterrupt:
        ended.append("interrupted")
    assert 0.05 < time.monotonic() - start < 0.5
print(*ended, threading.active_count())
"""
    assert run(code, SCRATCHNET_THREADS="2") == "interrupted interrupted interrupted 2"
