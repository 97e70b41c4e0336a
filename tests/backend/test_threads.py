import os
import queue
import threading
import time

import numpy as np
import pytest
import threadpoolctl

import xpcnn
from tests.backend.processes import fails, python
from tests.functional.strategies import values
from tests.nn.layers import in_float64
from xpcnn import functional as F
from xpcnn import models, nn
from xpcnn.backend.numpy import plans as plans_module
from xpcnn.backend.numpy import threads
from xpcnn.backend.numpy.plans import Plans
from xpcnn.backend.numpy.threads import Blas, ThreadPool
from xpcnn.errors import ConfigError
from xpcnn.nn.contexts import keeps_caches
from xpcnn.testing import assert_close


def blas_threads():
    info = threadpoolctl.threadpool_info()
    return [library["num_threads"] for library in info if library["user_api"] == "blas"]


@pytest.fixture
def pool(monkeypatch):
    """A pool of four threads, however many cores there are."""
    monkeypatch.setattr(threads, "_usable_cores", lambda: 4)
    pool = ThreadPool()
    pool.size = 4
    return pool


@pytest.fixture
def numbers():
    """Set the number of threads back after the test."""
    before = xpcnn.get_num_threads()
    yield
    xpcnn.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_every_task_is_done_once(pool, count):
    done = []
    pool.run(done.append, range(count))
    assert sorted(done) == list(range(count))


def test_several_threads_take_part(pool):
    meeting = threading.Barrier(4, timeout=30)  # nobody passes alone
    pool.run(lambda task: meeting.wait(), range(4))


@pytest.mark.parametrize("wrong", [0, 1, 7, 9])
def test_an_error_reaches_the_caller_and_the_pool_lives_on(pool, wrong):
    def work(task):
        if task == wrong:
            raise KeyError(task)

    for _ in range(3):
        with pytest.raises(KeyError, match=str(wrong)):
            pool.run(work, range(10))
    done = []
    pool.run(done.append, range(10))
    assert sorted(done) == list(range(10))
    assert not pool.busy


def test_a_task_works_alone(numbers):
    xpcnn.set_num_threads(2)
    backend = xpcnn.get_backend()
    counts, names = [], set()

    def task(_):
        counts.append(backend.get_num_threads())
        backend.parallel(lambda _: names.add(threading.get_ident()), range(8), 1e12)
        assert not backend.shares(1e12)

    here = xpcnn.get_num_threads()
    assert backend.shares(1e12) == (here > 1)
    backend.pool.run(task, range(1))
    assert counts == [1]
    assert names == {threading.get_ident()}
    with pytest.raises(ZeroDivisionError):
        backend.pool.run(lambda _: 1 / 0, range(4))
    assert backend.get_num_threads() == here
    assert not backend.pool.inside


def test_its_threads_know_nothing_of_who_came_first(pool):
    """A free-threaded Python starts threads in their maker's context: the pool's would keep its switches for ever."""
    seen = []

    def look(task):
        meeting.wait()
        seen.append((np.geterr()["over"], keeps_caches()))

    usual = "ignore", keeps_caches()  # what an operation means to overflow must not warn there
    meeting = threading.Barrier(4, timeout=30)
    with np.errstate(over="raise"), xpcnn.no_grad():
        pool.run(look, range(4))
    assert sorted(seen, key=usual.__eq__)[1:] == [usual] * 3  # the caller's own thread is the fourth


@pytest.mark.parametrize("locked", [True, False])
def test_who_waits_looks_only_where_that_keeps_nobody_from_running(monkeypatch, locked):
    class Messages(queue.SimpleQueue):
        looks = 0

        def empty(self):
            Messages.looks += 1
            if Messages.looks == 3:
                self.put("late")
            return super().empty()

    monkeypatch.setattr(threads, "has_lock", lambda: locked)
    messages = Messages()
    messages.put("early")
    assert threads._get(messages) == "early"
    assert Messages.looks == (0 if locked else 1)
    if not locked:
        assert threads._get(messages) == "late"
        assert Messages.looks == 3
    later = threading.Timer(0.05, messages.put, ["later"])  # long after the last look
    later.start()
    assert threads._get(messages) == "later"
    assert Messages.looks <= 3 + threads.GLANCES


def test_work_for_two_begins_earlier_without_the_lock(monkeypatch):
    worth = []
    for locked in (True, False):
        monkeypatch.setattr(threads, "has_lock", lambda locked=locked: locked)
        worth.append(ThreadPool().worth)
    assert worth[0] == 5 * worth[1]


def test_a_free_threaded_python_stays_free():
    """No module of the package brings the lock back."""
    if threads.has_lock():
        pytest.skip("this Python has the lock")
    code = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("error")
import xpcnn
for module in pkgutil.walk_packages(xpcnn.__path__, "xpcnn."):
    if not module.name.endswith(("__main__", "worker")):
        importlib.import_module(module.name)
import safetensors, threadpoolctl
print(sys._is_gil_enabled())
"""
    assert python(code) == "False"


def test_nested_work_is_done(pool):
    done = []
    pool.run(lambda outer: pool.run(lambda inner: done.append((outer, inner)), range(5)), range(5))
    assert sorted(done) == [(outer, inner) for outer in range(5) for inner in range(5)]


def test_threads_of_the_user_share_it(pool):
    done = {number: [] for number in range(5)}

    def use(number):
        for _ in range(20):
            pool.run(done[number].append, range(10))

    users = [threading.Thread(target=use, args=(number,)) for number in done]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert all(sorted(tasks) == sorted(list(range(10)) * 20) for tasks in done.values())


@pytest.fixture
def two_blas_threads():
    """Let BLAS have two threads at the start of the test; return what is seen then."""
    with threadpoolctl.threadpool_limits(2, "blas"):
        if set(blas_threads()) != {2}:
            pytest.skip("NumPy's BLAS does not take two threads")
        yield blas_threads()


@pytest.mark.parametrize("work", [0.0, 1e12])
def test_blas_is_held_while_products_are_made_and_set_back(two_blas_threads, work):
    before, backend = two_blas_threads, xpcnn.get_backend()
    seen = []
    backend.parallel(lambda task: seen.append(blas_threads()), range(8), work)
    assert all(threads == [1] * len(before) for threads in seen)
    assert blas_threads() == before
    backend.parallel(lambda task: seen.append(blas_threads()), range(8), work, products=False)
    assert seen[8:] == [before] * 8
    with pytest.raises(ZeroDivisionError):
        backend.parallel(lambda task: 1 // 0, range(8), work)
    assert blas_threads() == before


def test_blas_is_held_while_a_record_is_replayed(two_blas_threads, monkeypatch):
    monkeypatch.setenv("XPCNN_PROCESSES", "0")
    before, backend = two_blas_threads, xpcnn.get_backend()
    x = np.zeros((4, 4), "float32")
    seen = []
    replay = backend.capture(lambda: backend.for_array(x).xp.add(x, 1, out=x))
    replay._bound.append((lambda: seen.append(blas_threads()), ()))
    replay()
    assert x[0, 0] == 2
    assert seen == [[1] * len(before)]
    assert blas_threads() == before


def test_blas_is_held_while_a_plan_is_played(two_blas_threads, monkeypatch):
    before, backend = two_blas_threads, xpcnn.get_backend()
    plans = Plans(backend)
    monkeypatch.setattr(plans_module, "CALLS_BEFORE", 0)
    monkeypatch.setattr(backend, "plans", plans)
    x, weight = np.ones((2, 3, 5, 5), "float32"), np.ones((4, 3, 3, 3), "float32")
    for _ in range(2):  # scratch memory may grow at first
        F.conv2d(x, weight)
    (plan,) = plans._local.plans.values()
    seen = []
    plan._bound.append((lambda: seen.append(blas_threads()), ()))
    F.conv2d(x, weight)
    assert seen == [[1] * len(before)]
    assert blas_threads() == before


def test_any_thread_may_hold(two_blas_threads):
    """threadpoolctl's own limits do nothing in a thread while the one that used them first lives."""
    blas, before = Blas(), two_blas_threads
    seen = []

    def hold():
        with blas.single():
            seen.extend(blas_threads())

    hold()
    other = threading.Thread(target=hold)
    other.start()
    other.join()
    assert seen == [1] * 2 * len(before)
    assert blas_threads() == before


def test_holds_nest(two_blas_threads):
    blas, before = Blas(), two_blas_threads
    with blas.single():
        with blas.single():
            assert set(blas_threads()) <= {1}
        assert set(blas_threads()) <= {1}
    assert blas_threads() == before


def test_nobody_leaves_whose_memory_others_still_write(pool, monkeypatch):
    """Ctrl-C reaches whoever waits for the helpers: it ends the work, but not before they are done."""
    meeting, ended, interrupted, get = threading.Barrier(4, timeout=30), [], [], threads._get

    def interrupted_get(messages):
        if threading.current_thread() is threading.main_thread() and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return get(messages)

    def task(number):
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        ended.append(number)

    monkeypatch.setattr(threads, "_get", interrupted_get)
    with pytest.raises(KeyboardInterrupt):
        pool.run(task, range(4))
    assert len(ended) == 4


def test_no_array_stays_behind(pool):
    import gc
    import weakref

    class Task:
        pass

    tasks = [Task() for _ in range(8)]
    gone = [weakref.ref(task) for task in tasks]
    pool.run(lambda task: None, tasks)
    del tasks
    gc.collect()
    assert [reference() for reference in gone] == [None] * 8


def test_a_child_of_a_fork_makes_its_own():
    if not hasattr(os, "fork"):
        pytest.skip("the system has no fork")
    code = """
import os
import numpy as np
from xpcnn import functional as F
from xpcnn.backend.numpy import threads
threads._usable_cores = lambda: 2
x = np.random.default_rng(0).normal(size=(64, 8, 28, 28)).astype("float32")
w = np.ones((8, 8, 3, 3), "float32")
for _ in range(4):  # the last one is played
    expected = F.conv2d(x, w)[0]
child = os.fork()
same = np.array_equal(F.conv2d(x, w)[0], expected)
if child == 0:
    os._exit(0 if same else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), same)
"""
    assert python(code, "-W", "ignore") == "0 True"


def test_an_idle_pool_lets_the_process_end():
    assert python("import xpcnn; xpcnn.get_backend().pool.run(print, [1])") == "1"


class TestNumber:
    def test_never_more_than_cores(self, numbers):
        xpcnn.set_num_threads(10_000)
        assert xpcnn.get_num_threads() == threads._usable_cores()
        xpcnn.set_num_threads(1)
        assert xpcnn.get_num_threads() == 1

    @pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True, None])
    def test_what_is_none(self, numbers, wrong):
        before = xpcnn.get_num_threads()
        with pytest.raises(ConfigError, match="n: expected a number of threads of 1 or more, got"):
            xpcnn.set_num_threads(wrong)
        assert xpcnn.get_num_threads() == before

    def test_environment(self):
        assert python("import xpcnn; print(xpcnn.get_num_threads())", XPCNN_NUM_THREADS="1") == "1"
        done = fails("import xpcnn; xpcnn.get_num_threads()", XPCNN_NUM_THREADS="two")
        assert "XPCNN_NUM_THREADS: expected a number of 1 or more, got 'two'" in done.stderr

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_same_number_same_bits(self, numbers, rng, monkeypatch, dtype):
        """For one number of threads a step gives the same bits each time; for another it differs by rounding alone."""
        monkeypatch.setattr(threads, "_usable_cores", lambda: 4)
        monkeypatch.setattr(xpcnn.get_backend().pool, "worth", 1.0)
        x = values(rng, (16, 3, 32, 32), dtype)
        results = {}
        for number in (1, 2, 3, 1, 2, 3):
            xpcnn.set_num_threads(number)
            xpcnn.manual_seed(0)
            net = models.create("vgg8")
            if dtype == "float64":
                in_float64(net)
            y = net(x)
            net.backward(y)
            arrays = [y, *(parameter.grad for parameter in net.parameters())]
            if number in results:
                for first, second in zip(results[number], arrays, strict=True):
                    assert np.array_equal(first, second)
            results[number] = arrays
        for number in (2, 3) if dtype == "float64" else ():  # in float32 a ReLU at its kink may turn
            for first, second in zip(results[1], results[number], strict=True):
                assert_close(second, first, tolerance=1e-10)

    def test_networks_in_several_threads_at_once(self, numbers, rng):
        xs = [values(rng, (32, 1, 28, 28), "float32") for _ in range(3)]
        nets = [models.create("deep3").eval() for _ in xs]
        with nn.no_grad():
            expected = [net(x) for net, x in zip(nets, xs, strict=True)]
        got = [None] * 3

        def predict(i):
            with nn.no_grad():
                for _ in range(3):
                    got[i] = nets[i](xs[i])

        users = [threading.Thread(target=predict, args=(i,)) for i in range(3)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        for mine, theirs in zip(got, expected, strict=True):
            assert_close(mine, theirs, tolerance=1e-5)
