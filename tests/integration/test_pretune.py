"""``mmvars pretune`` from a folder of images to a file of decoders."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

import mmvars.pretune
from mmvars.checkpoints import load_pretrained, read_checkpoint
from mmvars.checkpoints.io import read_meta
from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.networks import DecoderRegression, create_model
from mmvars.pretune import main

CONFIG = """
default_scope = 'mmseg'
crop_size = (32, 48)
model = dict(
    type='mmvars.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0],
        bgr_to_rgb=True, size=crop_size),
    backbone=dict(
        type='mmvars.AbSViT', arch=dict(embed_dims=12, num_layers=2, num_heads=2), img_size=32,
        transfer='top-down',
        init_cfg=dict(type='Pretrained', checkpoint={trunk!r}, allow_new=('prior', 'feedback'))),
    decode_head=dict(type='FCNHead', in_channels=12, num_classes=3))
"""
COUNT = 26


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with ``config.py``, the trunk's weights, and images of odd kinds and sizes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mmvars.pretune, 'SAVE_SECONDS', -1)  # a state after every batch
    torch.manual_seed(1)
    trunk = create_model('vit_base', embed_dim=12, depth=2, num_heads=2, img_size=32, num_classes=0)
    for parameter in trunk.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    torch.save(trunk.state_dict(), 'trunk.pth')
    (tmp_path / 'config.py').write_text(CONFIG.format(trunk='trunk.pth'))
    random = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / 'photos' / f'{number % 3}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (24 + 2 * number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert('L' if number == 4 else 'RGB').save(path)
    return tmp_path


ARGUMENTS = 'config.py --images photos --output decoders.pth --batch-size 4 --num-workers 0'.split()


def _decoders(path='decoders.pth'):
    return read_checkpoint(path)['state_dict']


def _backbone(**options):
    config = dict(
        type='mmvars.AbSViT', arch=dict(embed_dims=12, num_layers=2, num_heads=2), img_size=32
    )
    backbone = MODELS.build(config | options)
    if 'init_cfg' in options:
        backbone.init_weights()
    return backbone


def test_the_file_loads_and_gives_what_was_fitted(folder, capsys):
    assert main(ARGUMENTS) == 0
    text = capsys.readouterr().out
    assert f'{COUNT} images of 32x48 pixels' in text and 'going on' not in text
    table = [line.split() for line in text.splitlines() if line.split()[:1] in (['0'], ['1'])]
    assert all(0 < float(error) < 1 for row in table for error in row[1:3]) and len(table) == 2
    assert not list(folder.glob('*.state-*'))
    backbone = _backbone()
    load_pretrained(backbone, 'trunk.pth', allow_new=('prior', 'feedback'))
    load_pretrained(backbone, 'decoders.pth')
    for index, decoder in enumerate(backbone.network.feedback.decoders):
        key = f'backbone.network.feedback.decoders.{index}.to_below.weight'
        assert torch.equal(decoder.to_below.weight, _decoders()[key])
    meta = read_meta('decoders.pth', read_checkpoint('decoders.pth'))
    assert f'{COUNT} images' in meta['pretuned_on']
    assert [f'{float(row[1]):.4f}' for row in table] == [
        f'{error:.4f}' for error in eval(meta['held_out_errors'])
    ]


def test_images_are_normalized_as_the_config_says(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        DecoderRegression, 'add', lambda self, images, held_out: seen.append((images, held_out))
    )
    for path in (folder / 'photos').rglob('*.png'):
        pixels = np.full((40, 50, 3), (180, 60, 140), np.uint8)
        Image.fromarray(pixels).save(path)
    with pytest.raises(InputError, match='too few'):  # nothing was added
        main(ARGUMENTS)
    images = torch.cat([images for images, _ in seen])
    assert images.shape == (COUNT, 3, 32, 48)
    expected = torch.tensor([(180 - 120) / 60, (60 - 110) / 50, (140 - 100) / 40])
    torch.testing.assert_close(images, expected.view(1, 3, 1, 1).expand_as(images))
    assert 0 < sum(int(held_out.sum()) for _, held_out in seen) < COUNT / 2


@pytest.mark.parametrize('stop', [KeyboardInterrupt, 'image'])
def test_a_stopped_pass_goes_on_and_gives_the_same_bits(folder, monkeypatch, capsys, stop):
    main([*ARGUMENTS, '--output', 'whole.pth'])
    added, add = [], DecoderRegression.add

    def counting_add(self, images, is_held_out):
        if stop is KeyboardInterrupt and len(added) == 3:
            raise KeyboardInterrupt
        added.append(len(images))
        add(self, images, is_held_out)

    monkeypatch.setattr(DecoderRegression, 'add', counting_add)
    damaged = sorted((folder / 'photos').rglob('*.png'))[14]
    if stop == 'image':  # one more, in the fourth batch
        damaged = damaged.with_name(damaged.stem + '5.png')
        damaged.write_bytes(b'no image')
        assert run_tool('pretune', ARGUMENTS) == 2
        assert f'{str(damaged.relative_to(folder))!r} (8 bytes) is not an image' in (
            capsys.readouterr().err
        )
        damaged.unlink()
    else:
        assert run_tool('pretune', ARGUMENTS) == 130
    assert added == [4, 4, 4] and not (folder / 'decoders.pth').exists()
    stop = None
    assert run_tool('pretune', ARGUMENTS) == 0
    assert f'going on after 12 of {COUNT} images' in capsys.readouterr().out
    assert sum(added) == COUNT
    assert all(
        torch.equal(value, _decoders('whole.pth')[key]) for key, value in _decoders().items()
    )
    assert not list(folder.glob('*.state-*'))


def test_the_state_of_another_run_is_refused_and_kept(folder, monkeypatch):
    monkeypatch.setattr(DecoderRegression, 'solve', lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(ARGUMENTS)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    before = (folder / 'decoders.state-0.safetensors').read_bytes()
    for change in (['--size', '48'], ['--batch-size', '3']):
        with pytest.raises(
            InputError, match=r'decoders\.state-0\.safetensors is the state of a run'
        ):
            main([*ARGUMENTS, *change])
    os.rename('photos/1/1.png', 'photos/1/1.jpg')  # one of those that are in the sums
    with pytest.raises(InputError, match='with other images'):
        main(ARGUMENTS)
    assert (folder / 'decoders.state-0.safetensors').read_bytes() == before
    assert main([*ARGUMENTS, '--overwrite']) == 0
    assert not list(folder.glob('*.state-*'))


def _without_images(folder):
    for path in (folder / 'photos').rglob('*.png'):
        path.unlink()


def _with_few_images(folder):
    for path in sorted((folder / 'photos').rglob('*.png'))[2:]:
        path.unlink()


def _with_output(folder):
    (folder / 'decoders.pth').write_bytes(b'mine')


def _with_a_resnet(folder):
    with (folder / 'config.py').open('a') as file:
        file.write("model['backbone'] = dict(type='ResNet', depth=18)")


@pytest.mark.parametrize(
    'prepare, arguments, message',
    [
        (None, ['--images', 'phots'], "--images 'phots' does not exist: give a folder"),
        (None, ['--images', 'config.py'], "--images 'config.py' is a file: give a folder"),
        (_without_images, [], r"the folder 'photos' holds no image \(.bmp"),
        (_with_few_images, [], '2 images of 32x48 pixels .* too few: . of them are held out'),
        (_with_output, [], 'decoders.pth exists and is kept as it is'),
        (None, ['--output', 'no/decoders.pth'], 'the folder no does not exist'),
        (None, ['--output', 'decoders.txt'], 'must end in one of .pth'),
        (None, ['--batch-size', '0'], '--batch-size must be a whole number of at least 1'),
        (None, ['--size', '8'], 'smaller than|at least one patch'),
        (None, ['--device', 'cuda:7'], "device 'cuda:7' cannot be used here"),
        (
            None,
            ['--cfg-options', 'model.backbone.init_cfg=None'],
            r'no trained weights, .* set --cfg-options model.backbone.pretrained=FILE',
        ),
        (
            None,
            ['--cfg-options', 'model.backbone.init_cfg.checkpoint=none.pth'],
            'checkpoint none.pth does not exist',
        ),
        (
            None,
            ['--cfg-options', 'model.backbone.design=mask_attention'],
            'fits decoders, and this network has none',
        ),
        (_with_a_resnet, [], 'model.backbone is ResNet, none of mmvars'),
        (
            None,
            ['--cfg-options', 'model.data_preprocessor=None'],
            'has no data_preprocessor, so that mean and std',
        ),
    ],
)
def test_what_cannot_be_used_is_one_message(folder, capsys, prepare, arguments, message):
    if prepare:
        prepare(folder)
    with pytest.raises(InputError, match=message) as error:
        main([*ARGUMENTS, *arguments])
    assert '\n' not in str(error.value)
    output = folder / 'decoders.pth'
    assert output.read_bytes() == b'mine' if prepare is _with_output else not output.exists()


def test_a_config_that_loads_the_decoders_that_it_makes(folder):
    """It is the one that is trained with afterwards."""
    donor = _backbone()
    load_pretrained(donor, 'trunk.pth', allow_new=('prior', 'feedback'))
    torch.save(donor.network.state_dict(), 'start.pth')
    options = [
        *('--cfg-options', 'load_from=start.pth', 'model.backbone.init_cfg.checkpoint=decoders.pth')
    ]
    assert main([*ARGUMENTS, *options]) == 0
    assert len(_decoders()) == 2


def test_class_priors_are_as_many_as_the_classes_of_the_head(folder):
    """The number may be left out of the config of a segmentor."""
    assert main([*ARGUMENTS, '--cfg-options', '+model.backbone.prior.type=learned_classes']) == 0
    assert len(_decoders()) == 2


@pytest.mark.slow  # timm's models take seconds to import
def test_on_a_trunk_of_timm_the_file_loads_after_the_weights_of_the_trunk(folder):
    arch = dict(trunk='timm/vit_tiny_patch16_224', num_layers=2)
    weights = _backbone(arch=arch).trunk.model.state_dict()
    torch.save(
        {name: value + 0.01 * torch.randn_like(value) for name, value in weights.items()},
        'timm.pth',
    )
    config = CONFIG.format(trunk='x').replace(
        'arch=dict(embed_dims=12, num_layers=2, num_heads=2)', f"arch={arch}, pretrained='timm.pth'"
    )
    (folder / 'config.py').write_text(
        config.replace("'x', allow_new=('prior', 'feedback')", "'decoders.pth'")
    )
    assert main([*ARGUMENTS, '--size', '64']) == 0
    options = dict(
        arch=arch, img_size=96, init_cfg=dict(type='Pretrained', checkpoint='decoders.pth')
    )
    backbone = _backbone(**options, pretrained='timm.pth').eval()
    assert backbone.network.prior.center.norm() > 0.1
    assert len(_decoders()) == 3 * 2 + 1
    plain = create_model(arch['trunk'], depth=2, img_size=96, num_classes=0).eval()
    plain.load_state_dict(backbone.trunk.state_dict())
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(backbone.network(images).second.tokens, plain(images).tokens)
    trained = _backbone(**options, pretrained='timm.pth', reconstruction_loss_weight=0.1).train()
    trained(images, return_losses=True).losses['loss_reconstruction'].backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == name.endswith('.to_below.weight')
    with pytest.raises(
        InputError, match=r'on the trunk timm/vit_tiny_patch16_224 \(weights .*pretrained'
    ):
        _backbone(**options)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder):
    main([*ARGUMENTS, '--output', 'one.pth'])
    launch = [sys.executable, *'-m torch.distributed.run --standalone --nproc-per-node 2'.split()]
    done = subprocess.run(
        [*launch, '-m', 'mmvars.cli', 'pretune', *ARGUMENTS, '--launcher', 'pytorch'],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('trunk vit_tiny') == 1
    for key, value in _decoders('one.pth').items():
        torch.testing.assert_close(_decoders()[key], value, rtol=1e-5, atol=1e-6)
    assert not list(folder.glob('*.state-*'))
