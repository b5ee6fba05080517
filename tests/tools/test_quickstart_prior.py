"""The priors of the quickstart, with a tiny trunk in place of DINOv2."""

import re
from pathlib import Path

import _quickstart
import pytest
import torch

from mmvars.checkpoints import read_checkpoint, write_checkpoint
from mmvars.data import PHOTO_CLASSES, photos_root

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path) -> Path:
    """The quickstart's with two narrow blocks, its images and classes as they are."""
    path = tmp_path / 'tiny.py'
    base = Path(__file__).resolve().parents[2] / _quickstart.PHOTOS
    trunk = "dict(_delete_=True, trunk='timm/vit_tiny_patch16_224', num_layers=2)"
    path.write_text(
        f'_base_ = {str(base)!r}\nmodel = dict(backbone=dict(arch={trunk}, pretrained=False))\n'
    )
    return path


def test_prototypes_are_priors_and_asking_says_what_they_do(config, tmp_path):
    import _quickstart_prior as prior
    import timm
    from mmengine.config import Config

    torch.manual_seed(0)
    weights = timm.create_model('vit_tiny_patch16_224', num_classes=0).state_dict()
    write_checkpoint(tmp_path / 'weights.pth', weights)
    model = prior.build(Config.fromfile(config))
    model.backbone.pretrained = str(tmp_path / 'weights.pth')
    model.init_weights()
    network = model.backbone.network
    network.prior.center.normal_()
    parts = {k: v for k, v in network.state_dict().items() if not k.startswith('trunk.')}
    prior.write_partial(tmp_path / 'decoders.pth', network, parts)
    files = [str(tmp_path / name) for name in ('weights.pth', 'decoders.pth', 'start.pth')]
    prior.prototypes(str(config), *files)
    start = read_checkpoint(files[-1])['state_dict']
    table, center = (start[f'backbone.network.prior.{name}'] for name in ('prototypes', 'center'))
    torch.testing.assert_close(center, network.prior.center)
    assert not table[0].any() and table.isfinite().all()
    assert (table[1:].norm(dim=1) > 0).all() and len(table) == len(PHOTO_CLASSES)

    # With closed gates nothing changes by asking, whatever the head has learned.
    network.prior.prototypes.copy_(table)
    for gates, changes in ((0.0, False), (3.0, True)):
        for decoder in network.feedback.decoders:
            decoder.gate.data.fill_(gates)
        write_checkpoint(tmp_path / 'x.pth', model.state_dict(), 'state_dict', overwrite=True)
        prior.ask(str(config), *[str(tmp_path / 'x.pth')] * 2, str(tmp_path / f'{gates}.txt'))
        text = (tmp_path / f'{gates}.txt').read_text()
        pairs = re.findall(r'^(\w+)' + r' +([\d.]+)' * 4 + '$', text, re.MULTILINE)
        assert [name for name, *_ in pairs] == [*PHOTO_CLASSES[1:], 'mean']
        assert any(len({*numbers}) > 1 for _, *numbers in pairs) == changes

    # The same file is drawn, for two priors.
    from mmvars.visualization.cli import main

    image = next(Path(photos_root()).glob('images/val/*.jpg'))
    words = [config, tmp_path / 'x.pth', image, '--prior', 'class:person', 'class:sky']
    assert main([*map(str, words), '--layer', '0', '--out-dir', str(tmp_path / 'drawn')]) == 0
    assert [path.name for path in (tmp_path / 'drawn').iterdir()] == [f'{image.stem}_attention.png']
