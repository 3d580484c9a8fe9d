"""Messages of several topics that belong to one time."""

from hypothesis import given
from hypothesis import strategies as st

from diffpolicy_spec.ros.synchronise import Synchroniser


def test_one_topic_is_taken_as_it_comes():
    kept = Synchroniser(["a"])
    assert kept.take() is None
    assert kept.put("a", 1.0, "x")
    taken = kept.take()
    assert (taken.time, taken.messages, taken.apart) == (1.0, {"a": "x"}, 0.0)
    assert kept.take() is None
    kept.put("a", 1.0, "again")
    assert kept.take() is None


def test_the_slowest_topic_says_the_time_and_the_others_are_nearest_to_it():
    kept = Synchroniser(["joints", "camera"])
    for i in range(20):
        kept.put("joints", 0.01 * i, i)
    assert kept.take() is None
    kept.put("camera", 0.083, "image")
    taken = kept.take()
    assert taken.time == 0.083
    assert taken.messages == {"joints": 8, "camera": "image"}
    assert (taken.topic, round(taken.apart, 6)) == ("joints", 0.003)
    kept.put("joints", 0.2, 20)
    assert kept.take() is None  # no newer image


def test_one_that_was_overtaken_comes_in_before():
    kept = Synchroniser(["a", "b"])
    kept.put("a", 1.0, "1")
    kept.put("a", 1.2, "3")
    assert not kept.put("a", 1.1, "2")
    kept.put("b", 1.1, "b")
    assert kept.take().messages == {"a": "2", "b": "b"}


def test_a_clock_that_was_set_back_begins_anew():
    kept = Synchroniser(["a", "b"])
    for topic in "ab":
        kept.put(topic, 1000.0, "old")
    assert kept.take() is not None
    assert kept.put("a", 5.0, "new")
    assert kept.take() is None  # b's is of the other time
    kept.put("b", 5.0, "new")
    assert kept.take().messages == {"a": "new", "b": "new"}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 0.9)), max_size=60))
def test_times_only_grow_and_nothing_piles_up(messages):
    kept = Synchroniser(["a", "b"], depth=8)
    times = []
    seen = {"a": [], "b": []}
    for topic, time in messages:
        kept.put(topic, time, time)
        seen[topic].append(time)
        taken = kept.take()
        if taken is not None:
            times.append(taken.time)
            # The newest time that both topics have, and the farther one is as far as is told.
            assert taken.time == min(max(seen["a"]), max(seen["b"]))
            assert max(abs(value - taken.time) for value in taken.messages.values()) == taken.apart
    assert times == sorted(set(times))
    assert all(len(messages) <= 8 for messages in kept._kept.values())
