"""A link keeps to what its broker lets it publish, and says that there is no room meanwhile."""

import time
from pathlib import Path

import numpy as np

from edge_runtime.coordinator import broker as brokers
from edge_runtime.link import Link
from edge_runtime.mqtt import Mqtt
from edge_runtime.quota import Pace, Quota


def test_no_second_has_more_than_the_quota_however_messages_come() -> None:
    rng = np.random.default_rng(1)
    pace, sent, now_s = Pace(Quota(20, 5000)), [], 0.0
    for size in rng.integers(1, 1200, 3000).tolist():
        now_s += float(rng.exponential(0.01))
        if pace.take(size, now_s):
            sent.append((now_s, size))
    for start, _ in sent:
        within = [size for at_s, size in sent if start <= at_s < start + 1.0]
        assert len(within) <= 20
        assert sum(within) <= 5000
    assert sum(size for _, size in sent) > 0.6 * 5000 * now_s


def test_what_is_larger_than_the_quota_goes_alone() -> None:
    pace = Pace(Quota(0, 1000))
    assert [pace.take(size, at_s) for size, at_s in ((5000, 0.0), (10, 0.5), (10, 1.5))] == [True, False, True]


def test_a_paced_link_sends_all_in_order_and_in_time(tmp_path: Path) -> None:
    came: list[tuple[float, bytes]] = []
    with brokers.start("auto", folder=tmp_path) as broker:
        reader = Mqtt(Link(broker.host, broker.port, "reader"))
        writer = Mqtt(Link(broker.host, broker.port, "writer", quota=Quota(20, 0)))
        try:
            reader.start(["a"], lambda topic, payload: came.append((time.monotonic(), payload)), lambda up: None)
            writer.start([], lambda topic, payload: None, lambda up: None)
            for number in range(50):
                assert writer.send("a", b"%d" % number)
            assert writer.unsent_bytes() == writer._link.max_queued_bytes
            deadline = time.monotonic() + 20
            while len(came) < 50 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert writer.unsent_bytes() < 100
        finally:
            reader.close()
            writer.close()
    assert [payload for _, payload in came] == [b"%d" % number for number in range(50)]
    assert came[-1][0] - came[0][0] > 2 * 1.2


def test_many_topics_are_asked_for_a_few_at_a_time(tmp_path: Path) -> None:
    heard: list[str] = []
    topics = [f"topic/{number}" for number in range(30)]
    with brokers.start("auto", folder=tmp_path) as broker:
        link = Mqtt(Link(broker.host, broker.port, "one"))
        try:
            link.start(topics[:20], lambda topic, payload: heard.append(topic), lambda up: None)
            link.listen(topics[20:])
            deadline = time.monotonic() + 10
            while set(heard) != set(topics) and time.monotonic() < deadline:
                for topic in topics:
                    link.send(topic, b"")
                time.sleep(0.1)
        finally:
            link.close()
    assert set(heard) == set(topics)
