"""Make the embedded mini data set anew: 64 rendered scenes in the layouts of public data sets.

The scenes are functions of their numbers, so the result is always the same for the same versions::

    python -m venv .venv-mini
    .venv-mini/bin/pip install pybullet==3.2.7 numpy==2.4.6 pillow==13.0.0
    .venv-mini/bin/python tools/dataset_converters/make_mini.py mini

Takes a minute on one core. Nothing that exists is overwritten. The folder that it makes is
`mmvars/data/mini` but for the README there.
"""

import argparse
import sys
import tempfile
from pathlib import Path

COUNTS = {'train': 48, 'val': 16}
CROP = 64


def make(root: Path) -> None:
    """Render all scenes and write all layouts below ``root``."""
    import mini_scenes
    import pybullet
    from mini_layouts import NAMES, write_imagenet, write_lists, write_scene

    if mini_scenes.LABELS != NAMES:
        raise RuntimeError(f'scenes label {mini_scenes.LABELS}, layouts expect {NAMES}')
    pybullet.connect(pybullet.DIRECT)
    seed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for split, count in COUNTS.items():
            for number in range(1, count + 1):
                scene = mini_scenes.Scene(seed, Path(scratch))
                write_scene(
                    root,
                    split,
                    number,
                    *scene.render(scene.view, mini_scenes.HEIGHT, mini_scenes.WIDTH),
                )
                for wnid, image in scene.crops(CROP):
                    write_imagenet(root, split, number, wnid, image)
                seed += 1
    write_lists(root, COUNTS)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('out', type=Path, help='folder to make; must not exist or be empty')
    out = parser.parse_args(argv).out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        print(f'{str(out)!r} exists and is not an empty folder; name another', file=sys.stderr)
        return 2
    try:
        make(out)
    except ModuleNotFoundError as error:
        print(f'{error}; install what `{Path(__file__).name} --help` names', file=sys.stderr)
        return 2
    print(f'{sum(COUNTS.values())} scenes in {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
