"""Make the embedded photographs anew, from a folder of COCO photos with dense labels.

    python tools/dataset_converters/make_photos.py SOURCE OUT

SOURCE holds `images/{train,val}/*.jpg`, `masks/{train,val}/*.png` (COCO panoptic category ids, 0
where nothing is labeled) and `licenses.json`, a list with `file`, `license` and `flickr_page` of
each photo. Those under CC BY 2.0 or without known restrictions are copied as they are; the rest,
share-alike included, is left out. Takes seconds. OUT is `mmvars/data/photos` but for the README.
"""

import argparse
import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mmvars.data import PHOTO_CLASSES

LICENSES = {
    'CC BY 2.0': 'https://creativecommons.org/licenses/by/2.0/',
    'no known copyright restrictions': 'https://www.flickr.com/commons/usage/',
}
# COCO panoptic category ids of our classes. The rest becomes 'other': what COCO leaves unlabeled,
# small things (bags, cups, toys, screens, ...), and what too few photos show (water, mountains).
IDS = {
    'person': (1,),
    'animal': range(16, 26),
    'vehicle': range(2, 10),
    'food': (*range(52, 62), 122, 196),
    'furniture': (15, 62, 63, 65, 67, 70, *range(78, 83), 107, 156, 188, 189),
    'plant': (64, 119, 184, 193),
    'ground': (118, 125, 144, 145, 147, 149, 154, 159, 190, 191, 194, 200),
    'sky': (187,),
    'building': (95, 109, 112, 128, 151, 161, *range(171, 178), 180, 181, 185, 186, 197, 199),
}


def split_of(name: str) -> str:
    """``'val'`` for about a third of the photos, by a hash of the name without its suffix."""
    number = int(hashlib.sha256(Path(name).stem.encode()).hexdigest(), 16)
    return 'train' if number % 3 else 'val'


def label_table() -> np.ndarray:
    """``(256,)``: our class of each COCO id."""
    table = np.zeros(256, np.uint8)
    for name, ids in IDS.items():
        table[list(ids)] = PHOTO_CLASSES.index(name)
    return table


def make(source: Path, out: Path) -> int:
    """Write images, labels and attributions; returns the number of photos."""
    table = label_table()
    entries = json.loads((source / 'licenses.json').read_text(encoding='utf-8'))
    free = sorted((e for e in entries if e['license'] in LICENSES), key=lambda e: e['file'])
    rows = []
    for entry in free:
        name, split = entry['file'], split_of(entry['file'])
        (photo,) = source.glob(f'images/*/{name}')
        (mask,) = source.glob(f'masks/*/{Path(name).stem}.png')
        for kind in ('images', 'labels'):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, out / 'images' / split / name)
        label = Image.fromarray(table[np.asarray(Image.open(mask))])
        label.save(out / 'labels' / split / f'{Path(name).stem}.png', optimize=True)
        license_name = entry['license']
        rows.append((f'{split}/{name}', entry['flickr_page'], license_name, LICENSES[license_name]))
    with (out / 'attribution.csv').open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerows([('file', 'source', 'license', 'license_url'), *rows])
    return len(rows)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', type=Path, help='folder with images, masks and licenses.json')
    parser.add_argument('out', type=Path, help='folder to make; must not exist or be empty')
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        print(f'{str(args.out)!r} exists and is not an empty folder; name another', file=sys.stderr)
        return 2
    if not (args.source / 'licenses.json').is_file():
        print(f'{str(args.source)!r} holds no licenses.json; name another folder', file=sys.stderr)
        return 2
    print(f'{make(args.source, args.out)} photos in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
