"""Own data in a CSV file: numbering, paths and errors."""

import pickle

import pytest

from ppreid_plugin.data.csv_dataset import CSVDataset, CSVFormatError, number_of, register_csv_dataset

HEADER = "path,pid,camid,split\n"
GOOD = "a.jpg,7,1,train\nb.jpg,3,2,train\nq.jpg,7,1,query\ng.jpg,7,2,gallery\nj.jpg,-1,2,gallery\nz.jpg,0,2,gallery\n"


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "own.csv"
        path.write_text(text)
        return path

    return make


def test_numbers_keep_their_meaning(write):
    dataset = CSVDataset(str(write(HEADER + GOOD)), verbose=False)
    folder = write(HEADER + GOOD).parent
    assert dataset.train == [(str(folder / "a.jpg"), 1, 1, 0), (str(folder / "b.jpg"), 0, 2, 0)]
    assert dataset.query == [(str(folder / "q.jpg"), 7, 1, 0)]
    # junk (-1) is dropped, background (0) stays
    assert [item[1:3] for item in dataset.gallery] == [(7, 2), (0, 2)]


def test_words_have_a_number_of_their_own_whoever_is_added(write):
    """Opt-outs, budgets and deletions are by number: they must not pass to somebody else."""
    text = "a.jpg,Eve,door,train\nq.jpg,Bob,door,query\ng.jpg,Bob,yard,gallery\nh.jpg,Amy,yard,gallery\n"
    dataset = CSVDataset(str(write(HEADER + text)), verbose=False)
    bob, amy = number_of("Bob"), number_of("Amy")
    assert [item[1:3] for item in dataset.query + dataset.gallery] == [(bob, 0), (bob, 1), (amy, 1)]
    assert min(bob, amy) >= 2**32
    assert max(bob, amy) < 2**53
    more = CSVDataset(str(write(HEADER + text + "z.jpg,Al,yard,gallery\n")), verbose=False)
    assert more.gallery[:2] == dataset.gallery
    assert number_of("Zo\u00eb") == number_of("Zoe\u0308") != number_of("Zoe")
    assert [item[1] for item in dataset.train] == [0]


def test_worker_processes_that_start_afresh_can_have_it(write):
    dataset = CSVDataset(str(write(HEADER + GOOD)), verbose=False)
    assert pickle.loads(pickle.dumps(dataset)).gallery == dataset.gallery


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,pid,split\na,1,train\n", "lacks column camid .*it has path, pid, split"),
        (HEADER, "has no rows"),
        (HEADER + "a.jpg,1,1,test\n", "line 2: split is 'test'; allowed: train, query, gallery"),
        (HEADER + "a.jpg,,1,train\n", "line 2: pid is empty"),
        (HEADER + "a.jpg,1,1\n", "line 2: split is empty"),
        (HEADER + GOOD.replace("query", "train"), "no row with split 'query'"),
        (HEADER + GOOD + "q.jpg,7,1,gallery\n", "1 images are query and gallery at once, such as .*q.jpg"),
    ],
)
def test_errors_name_file_line_and_fix(write, text, message):
    with pytest.raises(CSVFormatError, match=message):
        CSVDataset(str(write(text)), verbose=False)


def test_a_name_is_registered_once_and_never_taken_over(write, tmp_path):
    file = write(HEADER + GOOD)
    assert register_csv_dataset(f"csv_test={file}") == "csv_test"
    assert register_csv_dataset(f"csv_test={file}") == "csv_test"
    other = tmp_path / "other.csv"
    other.write_text(HEADER + GOOD)
    with pytest.raises(ValueError, match="'csv_test' is a data set already"):
        register_csv_dataset(f"csv_test={other}")
    with pytest.raises(ValueError, match="'market1501' is a data set already"):
        register_csv_dataset(f"market1501={file}")


@pytest.mark.parametrize("spec", ["csv", "=x.csv", "a b=x.csv", "name="])
def test_a_spec_of_another_form_is_an_error(spec):
    with pytest.raises(ValueError, match=r"must be NAME=FILE\.csv"):
        register_csv_dataset(spec)


def test_a_number_is_one_person_however_it_is_written_and_beside_words(write):
    text = "a.jpg,1,0,train\nb.jpg,01,0,train\nc.jpg,2,0,train\nq.jpg,0005,1,query\ng.jpg,5,02,gallery\n"
    dataset = CSVDataset(str(write(HEADER + text + "z.jpg,0,2,gallery\nw.jpg,Eve,2,gallery\n")), verbose=False)
    assert [item[1] for item in dataset.train] == [0, 0, 1]
    assert [item[1:3] for item in dataset.query + dataset.gallery] == [(5, 1), (5, 2), (0, 2), (number_of("Eve"), 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + GOOD + "../{folder}/q.jpg,7,1,gallery\n", "1 images are query and gallery at once, such as .*q.jpg"),
        (HEADER + GOOD + "g.jpg,3,2,gallery\n", "1 images are in the gallery twice, such as .*g.jpg"),
        (HEADER + GOOD + 'x.jpg,"7,1,gallery\n' + 40_000 * "a.jpg,7,1,train\n", "cannot be read as CSV .*quote"),
    ],
)
def test_images_twice_and_files_that_are_no_csv_are_named(write, tmp_path, text, message):
    with pytest.raises(CSVFormatError, match=message):
        CSVDataset(str(write(text.format(folder=tmp_path.name))), verbose=False)


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "l.csv").write_bytes((HEADER + "é.jpg,1,1,train\n").encode("latin-1"))
    with pytest.raises(CSVFormatError, match=r"l.csv is not UTF-8 \(.* at byte \d+\). Save it as UTF-8"):
        CSVDataset(str(tmp_path / "l.csv"), verbose=False)
