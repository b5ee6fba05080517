"""The 64 scenes of the mini data set: composed by a seed, rendered by pybullet's CPU renderer."""

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mini_parts as parts
import numpy as np
import pybullet as bullet
import pybullet_data

HEIGHT, WIDTH = 128, 256
#: What a pixel can show; the index is the label that `render` writes. Mapped to the data sets'
#: ids in `mini_layouts.py`.
LABELS = ('road', 'sidewalk', 'building', 'tree', 'sky', 'person', 'car', 'table', 'ball', 'thing')
#: What stands in the scenes: kind -> (label, weight in the draw, radius in metres).
KINDS = {
    'racer': ('car', 4, 2.0),
    'rover': ('car', 2, 1.7),
    'person': ('person', 4, 0.6),
    'table': ('table', 4, 1.2),
    'ball': ('ball', 5, 0.6),
    'teddy': ('thing', 1, 0.9),
    'mug': ('thing', 1, 0.7),
    'tray': ('thing', 1, 0.8),
}
#: Kinds that make the classification set -> their ImageNet-1k class.
WNIDS = {
    'racer': 'n04037443',
    'ball': 'n04254680',
    'table': 'n03201208',
    'teddy': 'n04399382',
    'mug': 'n03063599',
    'tray': 'n04476259',
}


@dataclass(frozen=True)
class View:
    """A camera. ``eye`` and ``target`` in metres, ``fov`` the vertical angle in degrees."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov: float


class Scene:
    """One street scene, a function of its number alone. One lives at a time.

    Args:
        number: The seed.
        folder: Where textures and meshes are written to on the way.
    """

    def __init__(self, number: int, folder: Path) -> None:
        rng = self.rng = Random(1000 + number)
        bullet.resetSimulation()
        bullet.setAdditionalSearchPath(pybullet_data.getDataPath())
        self.labels = {}  # body -> label
        self.objects = []  # (kind, bodies, (x, y))
        self.number = number
        for old in folder.glob('box_*.obj'):
            old.unlink()
        self._build_street(folder, parts.textures(folder))
        eye_y, yaw = rng.uniform(-2.5, 2.5), rng.uniform(-0.35, 0.35)
        self.view = View(
            (-rng.uniform(0.5, 2.5), eye_y, rng.uniform(1.8, 3.4)),
            (6.0, eye_y + 7.5 * math.tan(yaw), rng.uniform(0.7, 1.4)),
            rng.uniform(38, 46),
        )
        self._place_objects(eye_y, yaw)
        side = rng.choice((-1, 1))
        self.light = dict(
            lightDirection=(-rng.uniform(2, 5), side * rng.uniform(2, 5), rng.uniform(4, 8)),
            lightColor=rng.choice([(1.0, 1.0, 1.0), (1.0, 0.95, 0.85), (0.92, 0.96, 1.0)]),
            lightAmbientCoeff=rng.uniform(0.5, 0.65),
            lightDiffuseCoeff=rng.uniform(0.4, 0.55),
            lightSpecularCoeff=0.05,
            shadow=1,
        )

    def _add(self, label: str, bodies: list[int]) -> None:
        self.labels.update(dict.fromkeys(bodies, LABELS.index(label)))

    def _build_street(self, folder: Path, textures: dict[str, int]) -> None:
        """Road up to the kerb, sidewalk with trees, a row of houses with gaps of sky."""
        rng = self.rng
        kerb = rng.uniform(7, 10)
        house = kerb + rng.uniform(3.5, 5)
        self._add(
            'road', [parts.box(folder, (160, 160, 0.2), (40, 0, -0.1), textures['asphalt'], 3)]
        )
        self._add(
            'sidewalk',
            [
                parts.box(
                    folder,
                    (house + 40 - kerb, 160, 0.2),
                    ((house + 40 + kerb) / 2, 0, 0.1),
                    textures['paving'],
                    2.5,
                )
            ],
        )
        y = -26.0
        while y < 26:
            width, height = rng.uniform(4, 8), rng.uniform(2.5, 7)
            if rng.random() < 0.65:
                wall = rng.choice(('brick', 'plaster', 'panel'))
                self._add(
                    'building',
                    [
                        parts.box(
                            folder,
                            (5, width, height),
                            (house + 2.5, y + width / 2, height / 2),
                            textures[wall],
                            3.0,
                        )
                    ],
                )
            y += width + rng.choice((0, 0.5, 2.0))
        for y in np.arange(-16, 16, 4):
            if rng.random() < 0.55:
                at = kerb + rng.uniform(1, 2.5), y + rng.uniform(-1, 1)
                self._add('tree', parts.tree(rng, *at, textures['leaves']))

    def _place_objects(self, eye_y: float, yaw: float) -> None:
        """Place up to 9 objects where the camera sees them, none inside another."""
        rng, taken = self.rng, []
        kinds, weights = list(KINDS), [weight for _, weight, _ in KINDS.values()]
        wanted = [
            rng.choice(('racer', 'rover')),
            'person',
            'table',
            ('teddy', 'mug', 'tray')[self.number % 3],
        ]
        wanted += rng.choices(kinds, weights, k=rng.randint(3, 5))
        for kind in wanted:
            label, _, radius = KINDS[kind]
            for _ in range(30):
                # Small things near the camera, large ones further off.
                depth = rng.uniform(2.0, 5.5) if radius < 1 else rng.uniform(3.5, 7.0)
                angle = yaw + rng.triangular(-0.6, 0.6, 0)
                at = depth, eye_y + (depth + 1.5) * math.tan(angle)
                if all(math.dist(at, other) > radius + far for other, far in taken):
                    taken.append((at, radius))
                    make = (
                        parts.person(rng, *at) if kind == 'person' else parts.model(kind, rng, *at)
                    )
                    self._add(label, make)
                    self.objects.append((kind, make, at))
                    break

    def render(self, view: View, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Render at twice the size and average.

        Returns:
            Image (height, width, 3) uint8, and labels (height, width) uint8, each the commonest of
            its 2x2 samples.
        """
        _, _, rgb, _, bodies = bullet.getCameraImage(
            2 * width,
            2 * height,
            bullet.computeViewMatrix(view.eye, view.target, (0, 0, 1)),
            bullet.computeProjectionMatrixFOV(view.fov, width / height, 0.1, 90),
            renderer=bullet.ER_TINY_RENDERER,
            **self.light,
        )
        rgb = np.reshape(rgb, (2 * height, 2 * width, 4))[..., :3].astype(np.float64)
        bodies = np.reshape(bodies, (2 * height, 2 * width))
        table = np.full(max(self.labels) + 2, LABELS.index('sky'))
        for body, label in self.labels.items():
            table[body] = label
        labels = table[bodies]  # -1 takes the last entry: sky
        rgb = np.where((bodies < 0)[..., None], self._sky(2 * height, 2 * width), rgb)
        image = rgb.reshape(height, 2, width, 2, 3).mean((1, 3))
        votes = (labels[..., None] == np.arange(len(LABELS))).reshape(height, 2, width, 2, -1)
        # 5 bits a channel halve the size of the PNG files.
        image = np.clip(image / 8 + 0.5, 0, 31.5).astype(np.uint8) * 8
        return image, votes.sum((1, 3)).argmax(-1).astype(np.uint8)

    def _sky(self, height: int, width: int) -> np.ndarray:
        """A gradient with a few soft clouds, by formula."""
        rng = Random(self.number)
        top, low = rng.choice(
            [
                ((90, 140, 215), (185, 210, 240)),
                ((150, 160, 175), (205, 208, 212)),
                ((95, 110, 170), (240, 200, 165)),
            ]
        )
        v, u = np.mgrid[:height, :width] / height
        share = np.clip(v / 0.6, 0, 1)[..., None]
        sky = np.asarray(top) * (1 - share) + np.asarray(low) * share
        for _ in range(4):
            cu, cv, size = rng.uniform(0, 2), rng.uniform(0, 0.35), rng.uniform(0.1, 0.3)
            cloud = np.exp(-((u - cu) ** 2 + 6 * (v - cv) ** 2) / size**2)[..., None]
            sky = sky + (250 - sky) * 0.7 * cloud
        return sky

    def crops(self, size: int) -> list[tuple[str, np.ndarray]]:
        """Take close-ups, each object alone in the street: (wnid, image (size, size, 3))."""
        found = []
        first = {kind: (made, at) for kind, made, at in reversed(self.objects) if kind in WNIDS}
        for kind, (made, at) in sorted(first.items()):
            hidden = {
                body: bullet.getBasePositionAndOrientation(body)
                for _, bodies, _ in self.objects
                for body in bodies
                if body not in made
            }
            for body, (_, turn) in hidden.items():
                bullet.resetBasePositionAndOrientation(body, (0, 0, -50), turn)
            radius = parts.MODELS[kind].radius * np.mean(parts.MODELS[kind].scale)
            target = (*at, 0.5 * radius)
            angle = math.degrees(math.atan(radius / math.dist(self.view.eye, target)))
            view = View(self.view.eye, target, min(2.5 * angle, 90))
            found.append((WNIDS[kind], self.render(view, size, size)[0]))
            for body, pose in hidden.items():
                bullet.resetBasePositionAndOrientation(body, *pose)
        return found
