"""Validation people: disjoint from training, matched across cameras, chosen by seed alone."""

import pytest
import torch

from ppreid_plugin import build
from ppreid_plugin.data.checks import DataError
from ppreid_plugin.data.validation import VALIDATION, hold_out_people, split_query_gallery


def people(items):
    return {item[1] for item in items}


def paths(items):
    return {item[0] for item in items}


def test_people_are_moved_not_copied(make_cfg):
    whole = build.build_datamanager(make_cfg())
    manager = build.build_datamanager(make_cfg("privacy.validation.ids_fraction", 0.4))
    before = whole.train_loader.dataset.train
    train = manager.train_loader.dataset.train
    held_out = manager.test_dataset[VALIDATION]
    validation = paths(held_out["query"]) | paths(held_out["gallery"])
    assert not paths(train) & validation
    assert paths(train) | validation == paths(before)
    assert people(train) == set(range(5))
    assert manager.num_train_pids == 5
    person_of = {item[0]: item[1] for item in before}
    assert not {person_of[path] for path in validation} & {person_of[path] for path in paths(train)}


def test_every_validation_query_has_a_match_in_another_camera(make_cfg):
    manager = build.build_datamanager(make_cfg("privacy.validation.ids_fraction", 0.4))
    held_out = manager.test_dataset[VALIDATION]
    assert len(held_out["query"]) >= 6
    for _, pid, camid, *_ in held_out["query"]:
        assert any(item[1] == pid and item[2] != camid for item in held_out["gallery"])


def test_the_choice_depends_on_its_seed_only(make_cfg):
    def chosen(seed, torch_seed):
        torch.manual_seed(torch_seed)
        manager = build.build_datamanager(make_cfg())
        state = torch.get_rng_state()
        held_out = hold_out_people(manager, ids_fraction=0.4, seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        return held_out

    assert chosen(1, 1) == chosen(1, 2)
    assert len({tuple(chosen(seed, 1)) for seed in range(6)}) > 1


def test_without_cameras_the_first_image_is_the_query_and_not_in_the_gallery():
    items = [("a1", 0, 0), ("a2", 0, 0), ("b1", 1, 0), ("b2", 1, 0), ("c1", 2, 0)]
    query, gallery = split_query_gallery(items, exclude_same_camera=False)
    assert [item[0] for item in query] == ["a1", "b1"]
    assert [item[0] for item in gallery] == ["a2", "b2", "c1"]


@pytest.mark.parametrize("fraction", [0.9, 0.99])
def test_too_few_people_remain(make_cfg, fraction):
    with pytest.raises(DataError, match="at least 2 of each are needed"):
        build.build_datamanager(make_cfg("privacy.validation.ids_fraction", fraction))


def test_the_validation_loader_uses_the_test_transform_without_augmentation(make_cfg):
    manager = build.build_datamanager(make_cfg("privacy.validation.ids_fraction", 0.4))
    loader = manager.test_loader[VALIDATION]["query"]
    assert loader.dataset.transform is manager.transform_te
    first, second = (next(iter(loader))["img"] for _ in range(2))
    assert torch.equal(first, second)
