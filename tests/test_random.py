"""The random state: what a seed fixes, whose it is in threads, and that it can be saved."""

import json
import threading

import numpy as np
import pytest

import xpcnn
from xpcnn import functional, nn, random
from xpcnn.backend import use_backend
from xpcnn.data import DataLoader
from xpcnn.errors import ConfigError


def draw():
    """Initial values, an order and a dropout mask: all that the library draws."""
    with use_backend("numpy"):
        weight = nn.Linear(3, 2).weight.data.copy()
        order = [labels.tolist() for _, labels in DataLoader(np.zeros((20, 2, 2)), np.arange(20), 20)]
        mask = functional.dropout(np.ones((4, 5), "float32"), training=True)[0]
        return weight.tolist(), order, np.array(mask).tolist()


def in_thread(work):
    """Return what `work` returns in a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def seeded(seed):
    xpcnn.manual_seed(seed)
    return [draw() for _ in range(3)]


def test_a_seed_gives_the_same_draws_again():
    assert seeded(3) == seeded(3)
    first = seeded(3)
    assert first[0] != first[1]
    assert seeded(4) != first


def test_threads_that_seed_do_not_disturb_each_other():
    """Turn by turn, so that each draw of one lies between two of the other."""
    alone = {seed: seeded(seed) for seed in (1, 2)}
    xpcnn.manual_seed(9)
    outside = [draw() for _ in range(3)]
    xpcnn.manual_seed(9)
    barrier, found = threading.Barrier(3), {}

    def work(seed):
        xpcnn.manual_seed(seed)
        draws = []
        for _ in range(3):
            barrier.wait()
            draws.append(draw())
        found[seed] = draws

    threads = [threading.Thread(target=work, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    main = []
    for _ in range(3):
        barrier.wait()
        main.append(draw())
    for thread in threads:
        thread.join()
    assert found == alone
    assert main == outside


def test_a_thread_that_never_seeds_draws_from_the_process():
    xpcnn.manual_seed(5)
    expected = [draw(), draw()]
    xpcnn.manual_seed(5)
    assert [in_thread(draw), draw()] == expected


def test_no_key_is_drawn_twice_by_threads_that_share_the_process():
    xpcnn.manual_seed(0)
    keys, lists = 3000, []

    def work():
        lists.append([random.draw_key() for _ in range(keys)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set().union(*lists)) == 4 * keys
    xpcnn.manual_seed(0)
    assert {random.draw_key() for _ in range(4 * keys)} == set().union(*lists)


def test_keys_are_those_of_the_first_release():
    """Golden numbers: a change would break the resumption of everybody's runs."""
    xpcnn.manual_seed(0)
    assert [random.draw_key() for _ in range(4)] == [3454673405, 1194227532, 2785832849, 2601991307]


def test_keys_are_spread_over_32_bits():
    """Each bit of 20,000 keys is on half the time, within six standard deviations; so is the xor of neighbours'."""
    xpcnn.manual_seed(1)
    keys = np.array([random.draw_key() for _ in range(20_000)], np.uint32)
    for words in (keys, keys[1:] ^ keys[:-1]):
        on = (words[:, None] >> np.arange(32, dtype=np.uint32) & 1).mean(axis=0)
        assert abs(on - 0.5).max() < 6 * 0.5 / np.sqrt(len(words))
    xpcnn.manual_seed(2)
    assert len({random.draw_key() for _ in range(20_000)} & set(keys.tolist())) < 10


def test_the_state_is_json_and_covers_every_draw():
    xpcnn.manual_seed(7)
    draw()
    saved = json.loads(json.dumps(random.get_state()))
    rest = [draw(), draw()]
    assert random.get_state() != saved
    random.set_state(saved)
    assert [draw(), draw()] == rest
    random.set_state(saved)
    xpcnn.manual_seed(8)
    before = random.get_state()
    assert in_thread(lambda: (random.set_state(saved), draw(), draw())[1:]) == tuple(rest)
    assert random.get_state() == before  # a thread restores its own


@pytest.mark.parametrize(
    "change", [{"keys": 3}, {"keys": {}}, {"keys": {"into": -1, "out": 0, "drawn": 0}}, {"state": 1}]
)
def test_a_damaged_state_changes_nothing(change):
    before = random.get_state()
    with pytest.raises(ConfigError, match="state: expected what"):
        random.set_state({**before, **change})
    assert random.get_state() == before


def test_a_fork_leaves_no_trace():
    xpcnn.manual_seed(6)
    expected = draw()
    xpcnn.manual_seed(6)
    with random.fork_rng():
        assert draw() == expected
        xpcnn.manual_seed(1)
        draw()
    assert draw() == expected


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, None])
def test_seeds_that_are_none(seed):
    with pytest.raises(ConfigError, match="seed: expected an integer of 0 or more"):
        xpcnn.manual_seed(seed)
