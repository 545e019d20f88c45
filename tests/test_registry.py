"""Registries and what installed packages add to them."""

import logging
from importlib import metadata

import pytest

from ppreid_plugin import registry
from ppreid_plugin.registry import Registry


def test_names_are_sorted_and_replacing_must_be_said():
    things = Registry("thing", contract=object)
    things.register("b")(int)
    things.register("a")(str)
    assert things.names() == list(things) == ["a", "b"]
    with pytest.raises(ValueError, match="'a' is registered already .*override=True"):
        things.register("a")(int)
    things.register("a", override=True)(int)
    assert things.get("a") is int
    assert "a" in things
    assert "c" not in things


def test_an_unknown_name_names_the_key_and_the_nearest():
    things = Registry("thing", contract=object)
    things.register("pixelate")(int)
    with pytest.raises(ValueError, match=r"privacy\.x is 'pixelize'; registered: pixelate. Did you mean 'pixelate'\?"):
        things.get("pixelize", key="privacy.x")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretend that a package with entry points is installed."""

    def install(**modules):
        points = []
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(code)
            points.append(metadata.EntryPoint(name, name, registry.ENTRY_POINT_GROUP))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(registry, "_entry_points_loaded", False)
        monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == points[0].group else [])

    return install


def test_an_installed_package_adds_a_target_that_a_configuration_can_name(installed, make_cfg):
    from ppreid_plugin import build
    from ppreid_plugin.suppression import DEID_TARGETS

    installed(
        gray_target="import ppreid_plugin\n"
        "from ppreid_plugin.suppression import DeIDTarget\n"
        "@ppreid_plugin.register_deid_target('gray_test', override=True)\n"
        "class Gray(DeIDTarget):\n"
        "    def __init__(self, level: float = 0.5):\n"
        "        self.level = level\n"
        "    def __call__(self, images):\n"
        "        return images * 0 + self.level\n"
    )
    try:
        cfg = make_cfg("privacy.deid.enabled", True, "privacy.deid.target", "gray_test")
        cfg.privacy.deid.kwargs.level = 0.25
        (part,) = build.build_components(cfg)
        assert part.targets["gray_test"].level == 0.25
    finally:
        DEID_TARGETS._entries.pop("gray_test", None)


def test_a_broken_package_is_logged_and_breaks_nothing(installed, caplog):
    installed(broken_extension_for_test="raise RuntimeError('broken on purpose')")
    things = Registry("thing", contract=object)
    with caplog.at_level(logging.WARNING):
        assert things.names() == []
    assert "broken on purpose" in caplog.text
