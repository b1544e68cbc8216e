"""Mini-batches: equal parts of the data, or fresh draws; shares of processes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from course_lib.data.sets import in_order
from course_lib.rso.minibatches import Minibatches
from course_lib.rso.proposals import generator_of


def dealt(samples, batch_size, kind, seed=0, share=(0, 1)):
    inputs = torch.arange(samples, dtype=torch.float32).view(-1, 1, 1, 1)
    labels = torch.arange(samples) % 7
    return Minibatches(inputs, labels, batch_size, kind=kind, seed=seed, share=share)


def joined(parts):
    return [number for part in parts for number in part]


def numbers(minibatch):
    inputs, labels = minibatch
    found = inputs.flatten().long()
    assert labels.equal(found % 7)  # each label is that of its sample
    return found.tolist()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(samples=st.integers(1, 40), data=st.data())
def test_a_partition_holds_each_sample_once_in_equal_parts(samples, data):
    batch_size = data.draw(st.integers(1, samples))
    batches = dealt(samples, batch_size, "partition")
    parts = [numbers(batches.take(i)) for i in range(len(batches))]
    assert sorted(joined(parts)) == list(range(samples))
    sizes = [len(part) for part in parts]
    assert sizes == [batches.size(i) for i in range(len(batches))]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-samples // batch_size)  # no more than it takes
    assert [numbers(part) for part in batches.all()] == parts


def test_a_partition_is_shuffled_by_the_seed():
    first, again, other = (dealt(30, 30, "partition", seed) for seed in (0, 0, 1))
    assert numbers(first.take(0)) == numbers(again.take(0)) != list(range(30))
    assert numbers(first.take(0)) != numbers(other.take(0))


def test_a_schedule_visits_all_parts_alike():
    batches = dealt(40, 10, "partition")
    schedule = batches.schedule(4000, generator_of(0))
    assert set(schedule) == {0, 1, 2, 3}
    counts = torch.tensor(schedule).bincount()
    assert (counts - 1000).abs().max() < 4 * (4000 * 3 / 16) ** 0.5
    assert schedule == batches.schedule(4000, generator_of(0))
    assert schedule != batches.schedule(4000, generator_of(1))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(samples=st.integers(1, 20), data=st.data())
def test_fresh_minibatches_pass_over_the_data(samples, data):
    batch_size = data.draw(st.integers(1, samples))
    batches = dealt(samples, batch_size, "fresh")
    assert len(batches) == 0  # none is met again
    a_pass = samples // batch_size
    assert batches.schedule(3 * a_pass, generator_of(0)) == list(range(3 * a_pass))
    taken = [numbers(batches.take(i)) for i in range(3 * a_pass)]
    assert {len(part) for part in taken} == {batch_size}
    assert {batches.size(i) for i in range(3)} == {batch_size}
    for start in range(0, 3 * a_pass, a_pass):
        passed = joined(taken[start : start + a_pass])
        assert len(set(passed)) == len(passed)


def test_fresh_minibatches_are_reshuffled():
    batches = dealt(20, 20, "fresh")
    batches.schedule(2, generator_of(0))
    first, second = numbers(batches.take(0)), numbers(batches.take(1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_skipped_minibatches_are_those_that_were_judged():
    batches = dealt(20, 6, "fresh")
    batches.schedule(9, generator_of(0))
    all_of_them = [numbers(batches.take(i)) for i in range(9)]
    batches.schedule(9, generator_of(0))
    batches.skip(5)
    assert [numbers(batches.take(i)) for i in range(5, 9)] == all_of_them[5:]
    partition = dealt(20, 6, "partition")
    before = numbers(partition.take(2))
    partition.skip(5)
    assert numbers(partition.take(2)) == before


@pytest.mark.parametrize("kind", ["partition", "fresh"])
def test_shares_make_up_each_minibatch(kind):
    alone = dealt(31, 10, kind)
    shares = [dealt(31, 10, kind, share=(rank, 3)) for rank in range(3)]
    for batches in (alone, *shares):
        schedule = batches.schedule(6, generator_of(0))
    for number in schedule:
        parts = [numbers(batches.take(number)) for batches in shares]
        assert joined(parts) == numbers(alone.take(number))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert shares[1].size(number) == alone.size(number)  # that of all
    whole = [
        joined(map(numbers, ps)) for ps in zip(*(s.all() for s in shares), strict=True)
    ]
    assert whole == [numbers(part) for part in alone.all()]


def test_all_covers_the_data_of_fresh_minibatches():
    batches = dealt(23, 10, "fresh")
    parts = [numbers(part) for part in batches.all()]
    assert [len(part) for part in parts] == [8, 8, 7]  # none too small
    assert joined(parts) == list(range(23))


def test_minibatches_stay_on_the_device(device):
    inputs, labels = torch.randn(9, 1, 2, 2, device=device), torch.zeros(9).long()
    for kind in ("partition", "fresh"):
        batches = Minibatches(inputs, labels.to(device), 4, kind=kind, seed=0)
        schedule = batches.schedule(2, generator_of(0))
        assert [t.device for t in batches.take(schedule[0])] == [inputs.device] * 2


def test_images_of_one_channel_are_never_taken_for_channels_last():
    """Where torch's batch norm on a CPU is off by thousandths in float32."""
    images = torch.randn(12, 5, 6, 1).permute(0, 3, 1, 2)
    assert images.stride() == (30, 1, 6, 1)
    own = Minibatches(images, torch.zeros(12), 4, kind="partition", seed=0)
    assert own.inputs.equal(images)
    assert own.inputs.stride() == own.take(0)[0].stride() == (30, 30, 6, 1)
    three = torch.randn(2, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    assert in_order(three).equal(three)
    assert in_order(three).stride() == (90, 30, 6, 1)
    assert in_order(images[:, :, 1:]).stride() == (24, 24, 6, 1)
