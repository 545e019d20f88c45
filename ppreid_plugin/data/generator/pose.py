"""How a person stands: a skeleton of two-segment limbs in a phase of a walk, and its projection into the image.

Body coordinates: ``l`` to the person's left, ``y`` up from the ground, ``z`` forward; one unit is the stature of an
adult. The proportions are ours, close to those of drawing manuals (a figure of seven and a half heads).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ppreid_plugin.data.generator.person import Person

HIP_Y, SHOULDER_Y, HEAD_Y = 0.53, 0.82, 0.925
HIP_HALF, SHOULDER_HALF = 0.052, 0.112
THIGH, SHIN, ANKLE_Y = 0.245, 0.235, 0.04
UPPER_ARM, FOREARM = 0.165, 0.155


@dataclass(frozen=True)
class Pose:
    """A moment of a walk.

    Args:
        yaw: radians; 0 looks into the camera, pi/2 walks to the right of the image, pi turns its back.
        phase: radians within the walk.
        stride: swing of the thighs in radians; 0 stands.
        arm_lift: 0 the arms swing, 1 one hand holds a phone.
    """

    yaw: float
    phase: float
    stride: float
    arm_lift: float


@dataclass(frozen=True)
class View:
    """Where the figure lands in the image.

    Args:
        scale: pixels per unit of stature.
        x, y: pixel of the point on the ground between the feet.
        pitch: radians the camera looks down.
        roll: radians the camera is tilted.
    """

    scale: float
    x: float
    y: float
    pitch: float
    roll: float


class Skeleton:
    """Joints of one person in one pose, in body coordinates, with their projection.

    Args:
        person: gives stature, stoop and widths.
        pose: the moment.
        view: the camera's view.

    Shape:
        joints: name to (l, y, z). ``at(l, y, z)``: pixel (x, y). ``depth(l, z)``: units, larger is nearer.
    """

    def __init__(self, person: Person, pose: Pose, view: View) -> None:
        self.person, self.pose, self.view = person, pose, view
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self._cos_pitch, self._sin_pitch = math.cos(view.pitch), math.sin(view.pitch)
        self._cos_roll, self._sin_roll = math.cos(view.roll), math.sin(view.roll)
        # A camera that looks down stands near: what is high is near it, and larger.
        self._near = 0.35 * math.sin(view.pitch)
        self.joints: dict[str, tuple[float, float, float]] = {}
        self._legs()
        self._arms()

    def at(self, l: float, y: float, z: float) -> tuple[float, float]:  # noqa: E741  (l, y, z are the body's axes)
        """Project a point of the body to a pixel."""
        z += self.person.stoop * max(y - HIP_Y, 0.0)
        across = z * self.sin + l * self.cos
        depth = z * self.cos - l * self.sin
        y -= self._drop
        up = y * self.person.stature * self._cos_pitch - depth * self._sin_pitch
        size = self.view.scale * (1.0 + self._near * (y - 0.5))
        right, down = across * size, -up * size
        return (
            self.view.x + right * self._cos_roll - down * self._sin_roll,
            self.view.y + right * self._sin_roll + down * self._cos_roll,
        )

    def joint(self, name: str) -> tuple[float, float]:
        """Pixel of a joint."""
        return self.at(*self.joints[name])

    def depth(self, name: str) -> float:
        """How near the camera a joint is, in units of stature; 0 is the middle of the body."""
        left, _, forward = self.joints[name]
        return forward * self.cos - left * self.sin

    def px(self, units: float) -> float:
        """A length in pixels."""
        return units * self.view.scale

    def half_width(self, half: float, deep: float) -> float:
        """Half width in pixels of an upright elliptic cylinder with these half axes (units), seen from this side."""
        return self.px(math.hypot(half * self.cos, deep * self.sin))

    def _legs(self) -> None:
        pose, width = self.pose, self.person.width
        stride = pose.stride
        if self.person["lower_kind"] == "skirt":
            stride = min(stride, 0.24 if self.person["lower_length"] == "long" else 0.4)
        for sign, name in ((1, "left"), (-1, "right")):
            phase = pose.phase + (0.0 if sign == 1 else math.pi)
            thigh = stride * math.sin(phase)
            knee = stride * (0.15 + 1.2 * max(math.cos(phase), 0.0))
            half = sign * HIP_HALF * width
            hip = (half, HIP_Y, 0.0)
            middle = (half, HIP_Y - THIGH * math.cos(thigh), THIGH * math.sin(thigh))
            ankle = (half, middle[1] - SHIN * math.cos(thigh - knee), middle[2] + SHIN * math.sin(thigh - knee))
            lift = 0.6 * (thigh - knee)
            toe = (half * 1.25, ankle[1] - 0.028 + 0.10 * math.sin(lift), ankle[2] + 0.105 * math.cos(lift))
            self.joints.update({f"{name}_hip": hip, f"{name}_knee": middle, f"{name}_ankle": ankle, f"{name}_toe": toe})
        # Bent legs are shorter: the whole body sinks until the lower foot stands on the ground.
        self._drop = min(self.joints["left_ankle"][1], self.joints["right_ankle"][1]) - ANKLE_Y

    def _arms(self) -> None:
        pose, person = self.pose, self.person
        for sign, name in ((1, "left"), (-1, "right")):
            phase = pose.phase + (math.pi if sign == 1 else 0.0)
            carries = person["bag"] in ("handbag", "suitcase") and person.side == sign
            swing = pose.stride * math.sin(phase) * (0.25 if carries else 0.95)
            bend = 0.12 if carries else 0.28 + 0.5 * max(swing, 0.0)
            if pose.arm_lift > 0 and not carries and person.side == -sign:
                swing, bend = swing + (0.45 - swing) * pose.arm_lift, bend + (1.75 - bend) * pose.arm_lift
            spread = 0.10 + 0.05 * (person.width - 1.0)
            half = sign * SHOULDER_HALF * person.width
            shoulder = (half, SHOULDER_Y - 0.026, 0.0)
            out = half + sign * UPPER_ARM * math.sin(spread)
            elbow = (out, shoulder[1] - UPPER_ARM * math.cos(swing), UPPER_ARM * math.sin(swing))
            total = swing + bend
            hand = (
                out + sign * 0.01,
                elbow[1] - FOREARM * math.cos(total),
                elbow[2] + FOREARM * math.sin(total),
            )
            self.joints.update({f"{name}_shoulder": shoulder, f"{name}_elbow": elbow, f"{name}_hand": hand})


def walk_pose(rng: np.random.Generator, yaw: float) -> Pose:
    """Sample a moment: one in five stands, one in seven looks at a phone."""
    stands = rng.random() < 0.2
    return Pose(
        yaw=yaw,
        phase=float(rng.uniform(0.0, 2 * math.pi)),
        stride=float(rng.uniform(0.0, 0.08) if stands else rng.uniform(0.28, 0.52)),
        arm_lift=float(rng.random() < 1 / 7),
    )
