"""Silhouettes of generated people: against what changes in the picture when only the person's colors do."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from ppreid_plugin.data.generator.camera import CAMERAS
from ppreid_plugin.data.generator.person import sample_person
from ppreid_plugin.data.generator.render import render, silhouette
from ppreid_plugin.data.pedestrians import NAME
from ppreid_plugin.data.silhouettes import silhouette_of

COLORS = ("upper", "second", "lower", "hair", "skin", "shoes", "hat", "bag", "backpack")
LENS_PX = 3  # the lens blurs over 5 x 5 pixels at most


def recolored(person):
    other = {name: tuple((value + 128) % 256 for value in getattr(person, name)) for name in COLORS}
    return dataclasses.replace(person, **other)


@pytest.mark.parametrize("camera", range(6))
def test_a_silhouette_is_where_the_picture_changes_with_the_persons_colors(camera):
    brush = np.ones((2 * LENS_PX + 1,) * 2, np.uint8)
    shares = []
    for index in range(8):
        person, seed = sample_person(np.random.default_rng(100 * camera + index)), 1000 * camera + index
        soft = silhouette(person, CAMERAS[camera], seed)
        touched, seen = (soft > 0).astype(np.uint8), (soft >= 128).astype(np.uint8)
        pictures = [render(one, CAMERAS[camera], seed, 7).image.astype(int) for one in (person, recolored(person))]
        changed = np.abs(pictures[0] - pictures[1]).max(axis=2)
        assert changed[cv2.dilate(touched, brush) == 0].max() == 0
        shares.append((changed[cv2.erode(seen, brush) > 0] > 8).mean())
        assert 0.02 < seen.mean() < 0.6
    assert min(shares) > 0.85  # eyes, mouth and what is dark either way stay
    assert np.mean(shares) > 0.97


def test_what_stands_before_a_person_is_cut_out():
    """A picture with the occluder and one without it (the same camera, nothing ever in front) differ just there."""
    camera = next(one for one in CAMERAS if one.occlusion > 0)
    always = dataclasses.replace(camera, occlusion=1.0)
    never = dataclasses.replace(camera, occlusion=0.0)
    cut = 0
    for seed in range(12):
        person = sample_person(np.random.default_rng(seed))
        hidden, whole = silhouette(person, always, seed), silhouette(person, never, seed)
        assert (hidden <= whole).all()
        difference = np.abs(render(person, always, seed, 7).image.astype(int) - render(person, never, seed, 7).image)
        far = cv2.dilate((difference.max(axis=2) > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) == 0
        assert (hidden == whole)[far].all()
        cut += int((hidden != whole).any())
    assert cut >= 6


def test_silhouettes_follow_from_the_data_sets_plan(pedestrians):
    files = sorted((pedestrians / NAME).glob("*/*.jpg"))
    people = [file for file in files if not file.name.startswith("0000")]
    streets = [file for file in files if file.name.startswith("0000")]
    for file in people[::25]:
        seen = silhouette_of(str(file))
        assert seen.shape == (256, 128)
        assert 0.02 < seen.mean() < 0.6
        # the person's outline is where the picture has strong edges: twice as strong as elsewhere
        gray = cv2.GaussianBlur(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), (0, 0), 1.5).astype(float)
        edges = np.hypot(*np.gradient(gray))
        outline = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
        mirrored = outline[:, ::-1] & ~outline
        assert edges[outline].mean() > edges[mirrored].mean()
    assert all(not silhouette_of(str(file)).any() for file in streets[:3])


def test_pictures_of_others_have_no_silhouette(pedestrians, tmp_path):
    file = next((pedestrians / NAME / "query").glob("*.jpg"))
    assert silhouette_of(str(file)) is not None
    assert silhouette_of(str(file.with_name("0001_c1s1_000000_00.jpg"))) is None  # not of the plan
    assert silhouette_of(str(tmp_path / "query" / file.name)) is None  # no meta.json
    assert silhouette_of(f"elsewhere/{file.name}") is None
    meta = json.loads((pedestrians / NAME / "meta.json").read_text())
    for name, changed in (("older", {"generator_version": 1}), ("broken", {"seed": "x"})):
        folder = tmp_path / name / "query"
        folder.mkdir(parents=True)
        shutil.copy(file, folder)
        (folder.parent / "meta.json").write_text(json.dumps(meta | changed))
        assert silhouette_of(str(folder / file.name)) is None
