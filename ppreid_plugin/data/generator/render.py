"""One picture: a person (or nobody) before a camera, with the boxes of the fine cues that can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ppreid_plugin.data.generator.camera import Camera, background, cast_shadow, cloth_folds, expose, occlude
from ppreid_plugin.data.generator.canvas import HEIGHT, WIDTH, Canvas
from ppreid_plugin.data.generator.figure import draw_figure
from ppreid_plugin.data.generator.person import Person
from ppreid_plugin.data.generator.pose import Skeleton, View, walk_pose

PixelBox = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are exclusive


@dataclass(frozen=True)
class Shot:
    """A picture and what is seen in it.

    Shape:
        image: (256, 128, 3) uint8, BGR. face, logo: boxes in pixels, None where not visible.
    """

    image: np.ndarray
    face: PixelBox | None
    logo: PixelBox | None


def render(
    person: Person | None, camera: Camera, seed: int, scene_seed: int, *, face: bool = True, logo: bool = True
) -> Shot:
    """Take one picture.

    Args:
        person: who walks by; None for the street alone.
        camera: which camera looks.
        seed: of pose, place, light and noise of this picture.
        scene_seed: of the streets, the same for all pictures of a data set.
        face: False leaves out the face's features and changes nothing else.
        logo: False leaves out the badge on the chest and changes nothing else.
    """
    # One stream for each step: what one step draws does not shift the next one's numbers.
    pose_rng, place_rng, front_rng, light_rng = (np.random.default_rng([seed, step]) for step in range(4))
    image = background(camera, place_rng, scene_seed)
    face_box = logo_box = None
    if person is not None:
        skeleton = _stand(person, camera, pose_rng)
        view = skeleton.view
        canvas = Canvas(camera.light)
        drawn = draw_figure(canvas, skeleton, face=face, logo=logo)
        image = cast_shadow(image, (view.x, view.y), 0.22 * view.scale, camera.light)
        image = canvas.over(image, cloth_folds(light_rng, scene_seed))
        face_box, logo_box = _whole(drawn.face), _whole(drawn.logo)
    hidden = occlude(image, camera, front_rng)
    image = expose(image, camera, light_rng, scene_seed)
    return Shot(image, _unless_hidden(face_box, hidden), _unless_hidden(logo_box, hidden))


def silhouette(person: Person, camera: Camera, seed: int) -> np.ndarray:
    """Return where the person of `render` with the same arguments is seen, without the street or the exposure.

    Shape:
        Output: (256, 128) uint8, 255 = person with what they carry. What stands before them is cut out; the blur of the
        lens is not in it.
    """
    pose_rng, _, front_rng, _ = (np.random.default_rng([seed, step]) for step in range(4))
    canvas = Canvas(camera.light)
    draw_figure(canvas, _stand(person, camera, pose_rng))
    # what stands in front is where a black and a white picture come out alike
    black, white = (np.full((HEIGHT, WIDTH, 3), level, np.uint8) for level in (0, 255))
    state = front_rng.bit_generator.state
    for picture in (black, white):
        front_rng.bit_generator.state = state
        occlude(picture, camera, front_rng)
    through = cv2.absdiff(white, black).min(axis=2)
    return cv2.multiply(canvas.opacity(), through, scale=1 / 255)


def encode(shot: Shot, camera: Camera, seed: int) -> bytes:
    """JPEG bytes of a shot, at a quality between the camera's bounds."""
    quality = int(np.random.default_rng([seed, 4]).integers(camera.quality[0], camera.quality[1] + 1))
    ok, data = cv2.imencode(".jpg", shot.image, (cv2.IMWRITE_JPEG_QUALITY, quality))
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a JPEG of quality {quality}.")
    return data.tobytes()


def _stand(person: Person, camera: Camera, rng: np.random.Generator) -> Skeleton:
    """Put a person before a camera."""
    pose = walk_pose(rng, camera.yaw + camera.yaw_spread * float(rng.normal()))
    view = View(
        scale=float(rng.uniform(*camera.stature_px)),
        x=WIDTH / 2 + float(rng.normal(0.0, 4.0)),
        y=HEIGHT - float(rng.uniform(4.0, 16.0)),
        pitch=camera.pitch + float(rng.normal(0.0, 0.02)),
        roll=float(rng.normal(0.0, 0.025)),
    )
    return Skeleton(person, pose, view)


def _whole(box: tuple[float, float, float, float] | None) -> PixelBox | None:
    """Round outward and clip to the picture; None if less than half of the box is left."""
    if box is None:
        return None
    left, top = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    right, bottom = min(int(np.ceil(box[2])), WIDTH), min(int(np.ceil(box[3])), HEIGHT)
    area = (box[2] - box[0]) * (box[3] - box[1])
    if right <= left or bottom <= top or (right - left) * (bottom - top) < 0.5 * area:
        return None
    return left, top, right, bottom


def _unless_hidden(box: PixelBox | None, hidden: PixelBox | None) -> PixelBox | None:
    """The box, or None if an occluder covers more than 30 % of it."""
    if box is None or hidden is None:
        return box
    wide = min(box[2], hidden[2]) - max(box[0], hidden[0])
    tall = min(box[3], hidden[3]) - max(box[1], hidden[1])
    covered = max(wide, 0) * max(tall, 0) / ((box[2] - box[0]) * (box[3] - box[1]))
    return None if covered > 0.3 else box
