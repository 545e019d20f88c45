"""Plans the files of a data set, renders them in several processes, and puts the folder in place in one step.

Every person has a seed of their own, so that the bytes do not depend on how many processes work.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ppreid_plugin.data.generator.camera import CAMERAS
from ppreid_plugin.data.generator.canvas import HEIGHT, WIDTH
from ppreid_plugin.data.generator.person import ATTRIBUTE_FIELDS, Person, sample_person
from ppreid_plugin.data.generator.render import Shot, encode, render
from ppreid_plugin.data.generator.scene import scene

GENERATOR_VERSION = 2  # raise it when the same seed gives other bytes
IMAGES_PER_PERSON = (12, 20)
MIN_CAMERAS = 3
BACKGROUND_SHARE = 0.1  # of bounding_box_test; about what Market-1501 holds of pid 0
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
BOX_FIELDS = ("file", *(f"{cue}_{side}" for cue in ("face", "logo") for side in ("left", "top", "right", "bottom")))
_CHUNK = 4  # people handed to a process at a time

Result = tuple[int, dict[str, str] | None, list[list[str | int]]]  # pid, attributes, rows of boxes.csv


@dataclass(frozen=True)
class Task:
    """The pictures of one person, or one batch of empty streets (pid 0)."""

    pid: int
    seed: tuple[int, ...]
    scene_seed: int
    files: tuple[tuple[str, int], ...]  # (path below the folder, camera from 0)


def plan(num_train_ids: int, num_test_ids: int, seed: int) -> list[Task]:
    """Decide every file name before anything is drawn.

    Person numbers are a random order, frame numbers are random: neither says who is who.
    """
    rng = np.random.default_rng([seed, GENERATOR_VERSION])
    pids = (rng.permutation(num_train_ids + num_test_ids) + 1).tolist()
    names = _Names(rng)
    tasks = []
    num_gallery = 0
    for index, pid in enumerate(pids):
        visited = _visits(rng)
        files: list[tuple[str, int]] = []
        seen: set[int] = set()
        for camera in visited:
            is_query = index >= num_train_ids and camera not in seen
            seen.add(camera)
            folder = TRAIN if index < num_train_ids else QUERY if is_query else GALLERY
            num_gallery += folder == GALLERY
            files.append((f"{folder}/{names.new(pid, camera)}", camera))
        tasks.append(Task(pid, (seed, GENERATOR_VERSION, 1, index), seed, tuple(files)))
    empty = max(round(num_gallery * BACKGROUND_SHARE / (1 - BACKGROUND_SHARE)), 1)
    cameras = rng.integers(len(CAMERAS), size=empty).tolist()
    streets = [(f"{GALLERY}/{names.new(0, camera)}", camera) for camera in cameras]
    for start in range(0, empty, 16):
        tasks.append(Task(0, (seed, GENERATOR_VERSION, 0, start), seed, tuple(streets[start : start + 16])))
    return tasks


class _Names:
    """File names as Market-1501 writes them, none twice: ``0001_c1s1_000151_01.jpg``."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._taken: set[str] = set()

    def new(self, pid: int, camera: int) -> str:
        while True:
            sequence, frame, box = (int(self._rng.integers(low, high)) for low, high in ((1, 7), (1, 100_000), (1, 10)))
            name = f"{pid:04d}_c{camera + 1}s{sequence}_{frame:06d}_{box:02d}.jpg"
            if name not in self._taken:
                self._taken.add(name)
                return name


def _visits(rng: np.random.Generator) -> list[int]:
    """Cameras of one person's pictures, each camera at least twice: a query needs a picture that stays behind."""
    total = int(rng.integers(IMAGES_PER_PERSON[0], IMAGES_PER_PERSON[1] + 1))
    cameras = rng.permutation(len(CAMERAS))[: int(rng.integers(MIN_CAMERAS, len(CAMERAS) + 1))]
    extra = rng.choice(cameras, total - 2 * len(cameras))
    return [int(camera) for camera in np.concatenate([cameras, cameras, extra])]


def write(
    root: Path, name: str, num_train_ids: int, num_test_ids: int, seed: int, workers: int, overwrite: bool
) -> Path:
    """Render all files into a temporary folder beside ``root/name``, then rename it.

    Raises:
        FileExistsError: the folder appeared in the meantime and ``overwrite`` is False.
        OSError: the root cannot be written.
    """
    target = root / name
    with _staging(root, name) as staging:
        for folder in (TRAIN, QUERY, GALLERY):
            (staging / folder).mkdir()
        tasks = plan(num_train_ids, num_test_ids, seed)
        people: list[tuple[int, dict[str, str]]] = []
        boxes: list[list[str | int]] = []
        with closing(_work(tasks, staging, workers)) as results:  # no process may still write when we clean up
            for pid, attributes, rows in results:
                if attributes is not None:
                    people.append((pid, attributes))
                boxes.extend(rows)
        people.sort(key=lambda item: item[0])
        boxes.sort(key=lambda row: str(row[0]))
        _write_csv(
            staging / "attributes.csv",
            ("pid", *ATTRIBUTE_FIELDS),
            [[p, *(a[f] for f in ATTRIBUTE_FIELDS)] for p, a in people],
        )
        _write_csv(staging / "boxes.csv", BOX_FIELDS, boxes)
        meta = describe(num_train_ids, num_test_ids, seed) | {"num_images": sum(len(task.files) for task in tasks)}
        _write_durably(staging / "meta.json", json.dumps(meta, indent=2, sort_keys=True) + "\n")
        _put_in_place(staging, target, overwrite)
    return target


def describe(num_train_ids: int, num_test_ids: int, seed: int) -> dict[str, int]:
    """What the bytes depend on, as ``meta.json`` holds it."""
    return {
        "generator_version": GENERATOR_VERSION,
        "num_train_ids": num_train_ids,
        "num_test_ids": num_test_ids,
        "seed": seed,
        "height": HEIGHT,
        "width": WIDTH,
    }


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """A hidden folder beside the target that is removed again, whatever happens."""
    folder = root / f".{name}-{secrets.token_hex(6)}.tmp"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(staging: Path, target: Path, overwrite: bool) -> None:
    old = staging.with_suffix(".old")
    if overwrite and target.exists():
        target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _work(tasks: list[Task], folder: Path, workers: int) -> Generator[Result, None, None]:
    scene_seed = tasks[0].scene_seed
    threads = cv2.getNumThreads()
    try:
        _prepare(scene_seed)
        if workers == 1:
            for task in tasks:
                yield draw_task(task, folder)
            return
        # A forked process shares the streets and need not import torch again.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        with ProcessPoolExecutor(workers, multiprocessing.get_context(method), _prepare, (scene_seed,)) as pool:
            jobs: Callable[..., Iterator[Result]] = pool.map
            yield from jobs(draw_task, tasks, [folder] * len(tasks), chunksize=_CHUNK)
    finally:
        cv2.setNumThreads(threads)


def _prepare(scene_seed: int) -> None:
    cv2.setNumThreads(1)  # one thread a process; also what keeps OpenCV usable after a fork
    for camera in CAMERAS:
        for wall, ground in camera.places:
            scene(wall, ground, scene_seed)


def cast_task(task: Task) -> tuple[Person | None, list[int]]:
    """Return who is in a task's pictures (None: nobody) and the seed of each picture."""
    rng = np.random.default_rng(task.seed)
    person = sample_person(rng) if task.pid else None
    return person, [int(rng.integers(1 << 62)) for _ in task.files]


def draw_task(task: Task, folder: Path) -> Result:
    """Write the pictures of one task; return pid, attributes (None for streets) and rows of ``boxes.csv``."""
    person, seeds = cast_task(task)
    rows = []
    for (file, camera), seed in zip(task.files, seeds, strict=True):
        shot = render(person, CAMERAS[camera], seed, task.scene_seed)
        (folder / file).write_bytes(encode(shot, CAMERAS[camera], seed))
        rows.append(_box_row(file, shot))
    return task.pid, dict(person.names) if person else None, rows


def _box_row(file: str, shot: Shot) -> list[str | int]:
    return [file, *(shot.face or ("",) * 4), *(shot.logo or ("",) * 4)]


def _write_csv(path: Path, fields: tuple[str, ...], rows: list[list[str | int]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(fields)
    table.writerows(rows)
    _write_durably(path, text.getvalue())


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
