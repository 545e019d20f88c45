"""Shares of batches: ranks together see what one process would see, and draw nothing from the training's generators."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler, SequentialSampler

from ppreid_plugin.data.rank_sampler import RankSampler, check_shares
from ppreid_plugin.toolbox import submodule

sampler_module = submodule("data.sampler")


def shares(sampler, batch, size, *, epoch=0, seed=1):
    made = [RankSampler(sampler, batch, rank=rank, world_size=size, seed=seed) for rank in range(size)]
    for one in made:
        one.set_epoch(epoch)
    return [list(one) for one in made], [len(one) for one in made]


@settings(max_examples=50, deadline=None)
@given(images=st.integers(0, 60), share=st.integers(1, 6), size=st.integers(1, 4), random_order=st.booleans())
def test_together_they_are_the_batches_of_one_process(images, share, size, random_order):
    sampler = (RandomSampler if random_order and images else SequentialSampler)(range(images))
    parts, lengths = shares(sampler, share * size, size)
    batches = images // (share * size)
    assert [len(part) for part in parts] == lengths == [batches * share] * size
    joined = [row for number in range(batches) for part in parts for row in part[number * share : (number + 1) * share]]
    assert len(set(joined)) == len(joined)
    if not random_order:
        assert joined == list(range(batches * share * size))
    else:
        ((alone,), _) = shares(sampler, share * size, 1)
        assert joined == alone


ITEMS = [(f"{pid}-{n}.jpg", pid, n % 3, n % 2) for pid in range(8) for n in range(9)]


def test_images_of_a_person_stay_on_one_rank_and_people_differ_between_ranks():
    sampler = sampler_module.RandomIdentitySampler(ITEMS, 16, 4)
    parts, _ = shares(sampler, 16, 2)
    assert len(parts[0]) == len(parts[1]) >= 16
    for start in range(0, len(parts[0]), 8):
        people = [[ITEMS[row][1] for row in part[start : start + 8]] for part in parts]
        for own in people:
            assert len(set(own[:4])) == len(set(own[4:])) == 1
        assert len({*people[0], *people[1]}) == 4


@pytest.mark.parametrize(("kind", "column"), [("RandomDomainSampler", 2), ("RandomDatasetSampler", 3)])
def test_every_rank_sees_every_domain(kind, column):
    sampler = getattr(sampler_module, kind)(ITEMS, 12, 0)
    parts, _ = shares(sampler, 12, 2)
    domains = {item[column] for item in ITEMS}
    for part in parts:
        assert part
        for start in range(0, len(part), 6):
            seen = [ITEMS[row][column] for row in part[start : start + 6]]
            assert {seen.count(domain) for domain in domains} == {6 // len(domains)}


def test_epochs_and_seeds_differ_and_the_generators_do_not_notice():
    sampler = sampler_module.RandomIdentitySampler(ITEMS, 16, 4)
    plain = RandomSampler(ITEMS)
    for generator in (random, np.random):
        generator.seed(5)
    torch.manual_seed(5)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    for one in (sampler, plain):
        first, _ = shares(one, 16, 2)
        assert shares(one, 16, 2)[0] == first
        assert shares(one, 16, 2, epoch=1)[0] != first
        assert shares(one, 16, 2, seed=2)[0] != first
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"train.batch_size is 32 with 3 processes; .* Append: train.batch_size 33"):
        RankSampler(SequentialSampler(ITEMS), 32, rank=0, world_size=3, seed=1)
    with pytest.raises(ValueError, match=r"is 12 with 2 processes.*groups of 4 images a person.*batch_size (8|16)"):
        RankSampler(sampler_module.RandomIdentitySampler(ITEMS, 12, 4), 12, rank=0, world_size=2, seed=1)
    check_shares(32, 1, 5)
    check_shares(32, 2, 4)
