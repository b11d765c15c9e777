"""Who watches over the ranks names the one that is gone or that hangs, and nobody who has left in good order."""

import torch.distributed as dist

from wanvideo.parallel import watchdog
from wanvideo.parallel.groups import Counter
from wanvideo.parallel.watchdog import GONE_S, LEFT, Watchdog


def store_of(beats):
    store = dist.HashStore()
    for rank, beat in enumerate(beats):
        store.set(f"beat/{rank}", beat)
        store.set(f"host/{rank}", "node-7")
    return store


def test_a_rank_without_a_sign_is_named(monkeypatch):
    store, now = store_of(["1 5", "1 5"]), [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog, seen, moved = Watchdog(store, 0, 2, Counter()), {}, {}
    assert dog._trouble(seen, moved) is None
    now[0] += GONE_S + 1
    store.set("beat/0", "2 6")
    assert dog._trouble(seen, moved) == f"rank 1 on node-7 gave no sign for {GONE_S:.0f} s: it is gone"
    store.set("beat/1", LEFT)
    assert dog._trouble(seen, moved) is None


def test_a_rank_that_hangs_is_named(monkeypatch):
    store, now = store_of(["1 5", "1 3"]), [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog, seen, moved = Watchdog(store, 0, 2, Counter(), hang_s=60.0), {}, {}
    said = None
    for beat in range(2, 8):
        assert said is None
        for rank, count in ((0, 5), (1, 3)):
            store.set(f"beat/{rank}", f"{beat} {count}")
        said = dog._trouble(seen, moved)
        now[0] += 10.0
    assert said is None
    store.set("beat/0", "9 5")
    store.set("beat/1", "9 3")
    said = dog._trouble(seen, moved)
    assert said is not None and said.startswith("rank 1 on node-7 hangs at exchange 3, the furthest rank at 5")


def test_ranks_at_one_place_only_take_their_time(monkeypatch):
    store, now = store_of(["1 5", "1 5"]), [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog, seen, moved = Watchdog(store, 0, 2, Counter(), hang_s=5.0), {}, {}
    for beat in range(2, 5):
        store.set("beat/0", f"{beat} 5")
        store.set("beat/1", f"{beat} 5")
        assert dog._trouble(seen, moved) is None
        now[0] += 10.0
