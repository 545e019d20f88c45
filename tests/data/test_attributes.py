"""Attribute labels of training people: read from each kind of file, and given to torchreid's own numbering."""

import numpy as np
import pytest

from ppreid_plugin.data.attributes import label_table, load_attributes, pids_by_label
from ppreid_plugin.data.checks import DataError
from ppreid_plugin.data.pedestrians import NAME, SyntheticPedestrians
from ppreid_plugin.data.pedestrians import load_attributes as words_by_pid


def test_words_of_the_generated_pedestrians_become_numbers_in_sorted_order(pedestrians):
    read = load_attributes(pedestrians / NAME / "attributes.csv")
    words = words_by_pid(pedestrians)
    assert read.keys() == words.keys()
    for name in next(iter(words.values())):
        codes = sorted({labels[name] for labels in words.values() if labels[name]})
        for pid, labels in words.items():
            assert read[pid][name] == (codes.index(labels[name]) if labels[name] else -1)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "-1"])
def test_a_cell_of_a_csv_that_holds_nothing_is_not_known(tmp_path, cell):
    path = tmp_path / "people.csv"
    path.write_text(f"pid,hair,hat\n3,short,{cell}\n5,long,yes\n")
    assert load_attributes(path) == {3: {"hair": 1, "hat": -1}, 5: {"hair": 0, "hat": 0}}


def test_arrays_of_an_npz(tmp_path):
    np.savez(tmp_path / "people.npz", pids=np.array([4, 9]), attr_age=np.array([2, -1]))
    assert load_attributes(tmp_path / "people.npz") == {4: {"age": 2}, 9: {"age": -1}}
    np.savez(tmp_path / "people.npz", pids=np.array([4, 9]), attr_age=np.array([2, -9]))
    with pytest.raises(ValueError, match=r"people.npz': attr_age holds -9, must hold classes from 0, and -1 where it"):
        load_attributes(tmp_path / "people.npz")


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("people.csv", "pid,hat\n1,yes\n1,no\n", ValueError, "a pid stands twice"),
        ("people.csv", "person,hat\n1,yes\n", ValueError, "has the columns person, hat; needs pid"),
        ("people.csv", "pid,hat\nx,yes\n", ValueError, "pid that is no whole number"),
        ("people.csv", "pid,hat\n", ValueError, "has nobody below its header"),
        ("people.csv", "", ValueError, "has the columns none; needs pid"),
        ("people.txt", "pid,hat\n", ValueError, r"end in '.txt'; allowed: .mat, .csv, .npz"),
        ("people.csv", None, FileNotFoundError, "are not there. Give market_attribute.mat"),
        ("people.mat", None, FileNotFoundError, "market_attribute.mat"),
    ],
)
def test_errors_of_label_files(tmp_path, name, text, error, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        load_attributes(tmp_path / name)


def test_torchreids_training_labels_get_their_pids_back(pedestrians):
    dataset = SyntheticPedestrians(str(pedestrians), verbose=False)
    pids = pids_by_label(dataset.train)
    # the data set numbers pids in sorted order: an independent way to know them
    assert pids == dict(enumerate(sorted(pids.values())))
    assert set(pids.values()) <= words_by_pid(pedestrians).keys()
    assert len(pids) == dataset.num_train_pids == 8


def test_only_the_asked_source_is_read():
    items = [("0007_c1s1_1.jpg", 0, 0, 0), ("portrait.jpg", 1, 0, 1), (("0009_c2_1.jpg", "0009_c2_2.jpg"), 2, 0, 2)]
    assert pids_by_label(items, dsetid=0) == {0: 7}
    assert pids_by_label(items, dsetid=2) == {2: 9}
    with pytest.raises(DataError, match="whose picture 'portrait.jpg' is cannot be read from its name"):
        pids_by_label(items)


def test_a_label_of_two_people_is_an_error():
    with pytest.raises(DataError, match="label 0 has files named after the people 7 and 8"):
        pids_by_label([("a/0007_c1s1_1.jpg", 0, 0, 0), ("a/0008_c1s1_1.jpg", 0, 0, 0)])


def test_classes_are_numbered_among_the_people_who_are_there():
    people = {0: {"age": 3, "hat": -1}, 1: {"age": 1, "hat": 1}, 3: {"age": 3}}
    assert label_table(people, ["age", "hat"], 5).tolist() == [[1, -1], [0, 0], [-1, -1], [1, -1], [-1, -1]]
