"""The model zoo: cache, hash and errors, without a network."""

import gdown
import pytest

from ppreid_plugin import zoo


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "checkpoints"


def test_a_path_passes_as_it_is():
    assert zoo.resolve("log/model.pth") == "log/model.pth"


def test_a_model_is_downloaded_once_into_torchreids_cache(cache, monkeypatch):
    calls = []

    def download(url, output, quiet):
        calls.append(url)
        with open(output, "wb") as stream:
            stream.write(b"weights")
        return output

    monkeypatch.setattr(gdown, "download", download)
    for _ in range(2):
        path = zoo.resolve("zoo:resnet50_market1501")
    assert path == str(cache / "resnet50_market1501.pth")
    assert calls == [f"https://drive.google.com/uc?id={zoo.FILES['resnet50_market1501']}"]


def test_without_a_network_the_error_says_which_file_to_put_where(cache, monkeypatch):
    def fail(url, output, quiet):
        with open(output, "wb") as stream:
            stream.write(b"half")
        raise ConnectionError("no route")

    monkeypatch.setattr(gdown, "download", fail)
    with pytest.raises(
        zoo.ZooError, match="could not be downloaded .*no route.*put the file at .*x0_25_market1501.pth"
    ):
        zoo.resolve("zoo:osnet_x0_25_market1501")
    assert list(cache.iterdir()) == []  # nothing half-written


def test_a_file_with_another_hash_is_refused(cache):
    cache.mkdir()
    (cache / "osnet_x0_25_market1501.pth").write_bytes(b"something else")
    with pytest.raises(zoo.ZooError, match="has SHA-256 .*, expected c0ff0917"):
        zoo.resolve("zoo:osnet_x0_25_market1501")


def test_an_unknown_name_lists_the_zoo(cache):
    with pytest.raises(zoo.ZooError, match="Did you mean 'osnet_x0_25_market1501'"):
        zoo.resolve("zoo:osnet_x025_market1501")


def test_hashes_are_of_listed_files():
    assert set(zoo.SHA256) <= set(zoo.FILES)
    assert len(set(zoo.FILES.values())) == len(zoo.FILES)


def test_torchreids_own_table_agrees_where_names_are_unambiguous():
    """The package index's torchreid lists links too; where it gives one link a name, it is ours."""
    from ppreid_plugin.toolbox import torchreid

    factory = getattr(torchreid, "reid_model_factory", None)
    if factory is None:
        pytest.skip("upstream torchreid has no table of links")
    theirs = getattr(factory, "__trained_urls")
    for file, url in theirs.items():
        name = file.removesuffix(".pt")
        ids = {zoo.FILES.get(name), zoo.FILES.get(f"{name}_combineall")}
        assert url.rpartition("=")[2] in ids, name


def test_where_a_model_is_or_would_be_is_told_without_a_network(cache):
    assert zoo.cached_path("log/model.pth") == "log/model.pth"
    assert zoo.cached_path("zoo:resnet50_market1501") == str(cache / "resnet50_market1501.pth")
