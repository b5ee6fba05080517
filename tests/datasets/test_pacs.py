"""PACS: what is trained on, selected on and tested, the layout, and batches of all domains."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmvars.datasets import PACS, DomainSampler, check_data_roots
from mmvars.datasets.pacs import DOMAINS
from mmvars.engine.options import apply_options
from mmvars.errors import InputError

CLASSES = PACS.METAINFO['classes']
IMAGES = dict(art_painting=3, cartoon=4, photo=5, sketch=9)  # of each class
CONFIG = Path(__file__).parents[2] / 'configs/vars/rvt-tiny-p16-vars-sd_1xb96-5k_pacs.py'


@pytest.fixture
def root(tmp_path) -> Path:
    for domain, name in itertools.product(DOMAINS, CLASSES):
        folder = tmp_path / 'pacs' / domain / name
        folder.mkdir(parents=True)
        for number in range(IMAGES[domain]):
            (folder / f'{number}.JPG').touch()
    return tmp_path / 'pacs'


def _samples(*args, **kwargs) -> list[tuple]:
    dataset = PACS(*args, **kwargs)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [(info['img_path'], info['gt_label'], info['domain']) for info in infos]


@pytest.mark.parametrize('target', DOMAINS)
def test_nothing_leaks(root, target):
    np.random.seed(1)
    train, val, test = (_samples(str(root), target, split) for split in ('train', 'val', 'test'))
    assert len({*train, *val, *test}) == len(train) + len(val) + len(test) == 7 * 21
    assert (
        {domain for *_, domain in train} == {domain for *_, domain in val} == {*DOMAINS} - {target}
    )
    assert Counter(domain for *_, domain in test) == {target: 7 * IMAGES[target]}
    held_out = Counter(domain for *_, domain in val)
    assert all(count == int(0.2 * 7 * IMAGES[domain]) for domain, count in held_out.items())
    for path, label, domain in (*train, *val, *test):
        assert Path(path).parts[-3:-1] == (domain, CLASSES[label])
    np.random.seed(2)  # the draw is that of split_seed alone
    assert _samples(str(root), target, 'val') == val
    assert _samples(str(root), target, 'val', split_seed=1) != val


def test_a_batch_holds_as_many_of_each_domain(root):
    dataset = PACS(str(root), 'photo')
    stream = list(itertools.islice(DomainSampler(dataset, seed=3), 3 * 51 * 2))
    domains = [dataset.get_data_info(index)['domain'] for index in stream]
    assert domains == ['art_painting', 'cartoon', 'sketch'] * 102
    sketches = stream[2::3]  # there are 51 to train on: all are seen before any comes again
    assert len({*sketches[:51]}) == len({*sketches[51:]}) == 51
    assert sketches[:51] != sketches[51:]
    again = DomainSampler(dataset, seed=3)
    assert list(itertools.islice(again, 20)) == stream[:20]
    if hasattr(again, 'skip'):  # mmengine 0.10 has it not
        again.skip(10)
        assert list(itertools.islice(again, 20)) == stream[10:30]


def test_a_wrong_layout_gets_one_message(root):
    (root / 'sketch' / 'dog').rename(root / 'sketch' / 'Dog')
    for path in (root / 'photo' / 'house').iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r'no images in photo/house, sketch/dog\n') as error:
        PACS(str(root), 'photo', lazy_init=True)
    expected, found = str(error.value).split('found there')
    assert 'expected in data_root:\n    art_painting/CLASS/IMAGE\n' in expected
    assert '    sketch/\n      Dog/' in found and 'data_root=PATH' in found
    cfg = Config.fromfile(CONFIG)
    for data_root, said in (
        (root.parent, 'no images in art_painting/dog, .* and 25 more\n.*expected.*found there'),
        (root / 'no', 'does not exist .*expected in data_root:\n *art_painting/CLASS.*found in'),
    ):
        apply_options(cfg, {'data_root': str(data_root)})
        with pytest.raises(InputError, match=f'(?s){said}'):
            check_data_roots(cfg)


def test_one_option_sets_the_target_of_all_data_sets():
    cfg = Config.fromfile(CONFIG)
    apply_options(cfg, {'target': 'photo', 'split_seed': 2})
    datasets = [cfg[f'{split}_dataloader'].dataset for split in ('train', 'val', 'test')]
    assert [d.split for d in datasets] == ['train', 'val', 'test']
    assert {(d.target, d.split_seed) for d in datasets} == {('photo', 2)}
    assert 'target' not in cfg and 'split_seed' not in cfg
    cfg = Config.fromfile(CONFIG.with_name('rvt-tiny-p16-vars-sd_8xb128-coslr-300e_in1k.py'))
    with pytest.raises(InputError, match='target=photo does not apply: no data set of this config'):
        apply_options(cfg, {'target': 'photo'})


def test_unknown_choices_are_refused(root):
    with pytest.raises(InputError, match="target must be one of art_painting, .* got 'art'"):
        PACS(str(root), 'art')
    with pytest.raises(InputError, match="split must be one of train, val, test; got 'crossval'"):
        PACS(str(root), 'photo', 'crossval')
