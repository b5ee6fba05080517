"""What the scenes of the mini data set are made of: bodies of pybullet, textures by formula.

Needs pybullet (see ``make_mini.py``). Lengths are in metres, z is up; the camera looks along +x.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pybullet as bullet
from PIL import Image

SKIN = (0.85, 0.65, 0.5, 1.0)


def textures(folder: Path) -> dict[str, int]:
    """Paint the textures and load them; values are pybullet's texture ids.

    All are regular patterns, since noise costs bytes in the PNG files.
    """
    v, u = np.mgrid[:64, :64]
    row = v // 8
    mortar = (v % 8 == 0) | ((u + 8 * (row % 2)) % 16 == 0)
    window = (u % 32 > 7) & (u % 32 < 24) & (v % 32 > 5) & (v % 32 < 26)
    slab = (v % 32 == 0) | (u % 32 == 0)
    patterns = {
        'asphalt': (96 + 6 * ((u * 7 + v * 13) % 64 < 3), (1.0, 1.0, 1.05)),
        'paving': (np.where(slab, 140, 188), (1.0, 0.95, 0.85)),
        'brick': (np.where(mortar, 190, 150), (1.0, 0.62, 0.5)),
        'plaster': (np.where(window, 70, 205), (1.0, 0.95, 0.75)),
        'panel': (np.where(window, 120, 170), (0.85, 0.9, 1.0)),
        'leaves': (80 + 18 * (((u // 8) + (v // 8)) % 2), (0.55, 1.2, 0.45)),
    }
    ids = {}
    for name, (gray, tint) in patterns.items():
        path = folder / f'{name}.png'
        pixels = np.clip(gray[..., None] * np.asarray(tint), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        ids[name] = bullet.loadTexture(str(path))
    return ids


def box(
    folder: Path,
    size: tuple[float, float, float],
    center: tuple[float, float, float],
    texture: int,
    tile: float,
) -> int:
    """Place a textured box; one repeat of the texture spans ``tile`` metres."""
    half = np.asarray(size) / 2
    lines, faces = [], []
    for axis in range(3):
        u_axis, v_axis = [a for a in range(3) if a != axis]
        for side in (-1, 1):
            normal = np.zeros(3)
            normal[axis] = side
            corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
            # Counter-clockwise as seen from outside, else the renderer culls the face.
            if (side > 0) == (axis == 1):
                corners.reverse()
            base = len(faces) * 4
            for a, b in corners:
                point = np.zeros(3)
                point[axis], point[u_axis], point[v_axis] = side, a, b
                x, y, z = point * half
                uv = [(s + 1) / 2 * size[i] / tile for s, i in ((a, u_axis), (b, v_axis))]
                lines += [
                    f'v {x:.4f} {y:.4f} {z:.4f}',
                    'vt {:.4f} {:.4f}'.format(*uv),
                    'vn {:.0f} {:.0f} {:.0f}'.format(*normal),
                ]
            index = [base + i + 1 for i in range(4)]
            faces.append([[index[i] for i in triangle] for triangle in ((0, 1, 2), (0, 2, 3))])
    for pair in faces:
        lines += ['f ' + ' '.join(f'{i}/{i}/{i}' for i in triangle) for triangle in pair]
    path = folder / f'box_{len(list(folder.glob("box_*")))}.obj'
    path.write_text('\n'.join(lines) + '\n')
    shape = bullet.createVisualShape(bullet.GEOM_MESH, fileName=str(path))
    body = bullet.createMultiBody(0, -1, shape, center)
    bullet.changeVisualShape(body, -1, textureUniqueId=texture)
    return body


def _primitives(parts: list[dict], x: float, y: float, yaw: float) -> list[int]:
    """Place untextured primitives, given at the origin; each becomes a body of its own."""
    turn = bullet.getQuaternionFromEuler((0, 0, yaw))
    bodies = []
    for part in parts:
        part = dict(part)
        at, _ = bullet.multiplyTransforms((x, y, 0), turn, part.pop('at'), (0, 0, 0, 1))
        shape = bullet.createVisualShape(part.pop('kind'), **part)
        bodies.append(bullet.createMultiBody(0, -1, shape, at, turn))
    return bodies


def person(rng: Random, x: float, y: float) -> list[int]:
    """A mannequin 1.8 m high, in a shirt and trousers of random colors."""
    shirt = (
        *rng.choice([(0.8, 0.15, 0.2), (0.9, 0.5, 0.1), (0.6, 0.2, 0.7), (0.9, 0.85, 0.2)]),
        1.0,
    )
    legs = (*rng.choice([(0.1, 0.12, 0.3), (0.2, 0.15, 0.1), (0.12, 0.12, 0.12)]), 1.0)
    capsule, sphere = bullet.GEOM_CAPSULE, bullet.GEOM_SPHERE
    parts = [
        dict(kind=sphere, at=(0, 0, 1.65), radius=0.17, rgbaColor=SKIN),
        dict(kind=capsule, at=(0, 0, 1.13), radius=0.25, length=0.4, rgbaColor=shirt),
    ]
    for side in (-1, 1):
        parts += [
            dict(kind=capsule, at=(0, side * 0.13, 0.4), radius=0.12, length=0.62, rgbaColor=legs),
            dict(kind=capsule, at=(0, side * 0.33, 1.1), radius=0.08, length=0.5, rgbaColor=shirt),
        ]
    return _primitives(parts, x, y, rng.uniform(-0.6, 0.6))


def tree(rng: Random, x: float, y: float, leaves: int) -> list[int]:
    """A trunk and three balls of leaves, 3 to 4 m high."""
    height, lean = rng.uniform(1.2, 1.8), rng.uniform(0, 6.28)
    bodies = _primitives(
        [
            dict(
                kind=bullet.GEOM_CYLINDER,
                at=(0, 0, height / 2),
                radius=0.14,
                length=height,
                rgbaColor=(0.35, 0.23, 0.13, 1.0),
            )
        ],
        x,
        y,
        0,
    )
    for i in range(3):
        radius = rng.uniform(0.7, 1.0)
        angle = lean + 2.1 * i
        shape = bullet.createVisualShape(
            bullet.GEOM_MESH, fileName='textured_sphere_smooth.obj', meshScale=[radius] * 3
        )
        body = bullet.createMultiBody(
            0,
            -1,
            shape,
            (x + 0.45 * np.cos(angle), y + 0.45 * np.sin(angle), height + 0.5 + 0.35 * i),
        )
        bullet.changeVisualShape(body, -1, textureUniqueId=leaves)
        bodies.append(body)
    return bodies


@dataclass(frozen=True)
class Model:
    """One of pybullet_data's models.

    Attributes:
        path: File below ``pybullet_data``.
        scale: Range of the scale; many of the models are toys, so they are enlarged.
        origin: The point of the model that stands on the ground, at scale 1.
        painted: The link that gets the random color, or None to keep the texture.
        radius: Half the footprint at scale 1.
    """

    path: str
    scale: tuple[float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    painted: int | None = None
    radius: float = 0.5


MODELS = {
    'racer': Model('racecar/racecar.urdf', (7.0, 9.0), (0.18, 0, 0), 0, 0.25),
    'rover': Model('husky/husky.urdf', (2.6, 3.4), (0, 0, 0), 6, 0.55),
    'table': Model('table/table.urdf', (1.3, 1.7), (0, 0, 0), None, 0.8),
    'ball': Model('soccerball.urdf', (0.7, 1.2), (0, 0, -0.5), None, 0.5),
    'teddy': Model('teddy_vhacd.urdf', (13.0, 17.0), (0.068, 0.066, 0), -1, 0.06),
    'mug': Model('objects/mug.urdf', (9.0, 12.0), (0, 0.02, 0), -1, 0.06),
    'tray': Model('tray/traybox.urdf', (1.8, 2.4), (0, 0, -0.01), None, 0.35),
}
PAINTS = [
    (0.75, 0.1, 0.1),
    (0.1, 0.2, 0.75),
    (0.9, 0.75, 0.1),
    (0.15, 0.5, 0.2),
    (0.9, 0.45, 0.1),
    (0.85, 0.85, 0.85),
]


def model(name: str, rng: Random, x: float, y: float) -> list[int]:
    """Place a model on the ground at (x, y), turned, scaled and painted at random."""
    spec = MODELS[name]
    scale, yaw = rng.uniform(*spec.scale), rng.uniform(0, 6.28)
    turn = bullet.getQuaternionFromEuler((0, 0, yaw))
    foot, _ = bullet.multiplyTransforms(
        (0, 0, 0), turn, np.multiply(spec.origin, -scale).tolist(), (0, 0, 0, 1)
    )
    at = (x + foot[0], y + foot[1], foot[2])
    body = bullet.loadURDF(spec.path, at, turn, useFixedBase=True, globalScaling=scale)
    paint = rng.choice(PAINTS)
    if spec.painted is not None:
        bullet.changeVisualShape(body, spec.painted, rgbaColor=(*paint, 1.0))
    return [body]
