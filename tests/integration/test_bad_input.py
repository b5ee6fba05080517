"""Bad input of the two tools: one message, exit status 2, and a work dir as it was."""

import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmvars.cli import run_tool
from mmvars.registry import MODELS

STRICT = """
pipeline[0] = dict(type='mmvars.LoadImageFromFile')
pipeline.insert(2, dict(type='mmvars.CheckLabels', num_classes=150))
train_dataloader['num_workers'] = 1
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Weights that fit no model here."""
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'backbone.x': torch.ones(1)}, meta={}), path)
    return path


@pytest.fixture
def work_dir(tmp_path) -> Path:
    """A work dir with results in it."""
    folder = tmp_path / 'work'
    folder.mkdir()
    (folder / 'iter_9.pth').write_bytes(b'precious')
    (folder / 'seg.py').write_text('# the config of an older run')
    return folder


def refused(capsys, tool: str, *arguments, work_dir: Path) -> str:
    # The folder of a log is named by the second: two refusals within one share it.
    logs = [log.parent for log in work_dir.rglob('*.log')]
    before = {
        path: path.read_bytes()
        for path in work_dir.rglob('*')
        if path.is_file() and not any(path.is_relative_to(folder) for folder in logs)
    }
    argv = [*map(str, arguments), '--work-dir', str(work_dir)]
    assert run_tool(tool, argv) == 2
    message = capsys.readouterr().err
    assert 'Traceback' not in message
    for path, content in before.items():
        assert path.read_bytes() == content, path
    return message.split('mmvars: ', 1)[1]


@pytest.mark.parametrize('tool', ['train', 'test'])
@pytest.mark.parametrize(
    'text, words',
    [
        (None, 'does not exist'),
        ('x = (', 'cannot be read: SyntaxError'),
        ('x = 1', 'defines no model'),
        ('_base_ = "./gone.py"', 'cannot be read'),
        ('import a_module_that_is_not_there', 'cannot be read: ModuleNotFoundError'),
        ('raise SystemExit(3)', 'cannot be read: SystemExit'),
        ('model = 5', 'defines no model'),
    ],
)
def test_configs(tool, text, words, tmp_path, work_dir, checkpoint, capsys) -> None:
    config = tmp_path / 'mine.py'
    if text is not None:
        config.write_text(text)
    extra = [checkpoint] if tool == 'test' else []
    assert words in refused(capsys, tool, config, *extra, work_dir=work_dir)


@pytest.mark.parametrize(
    'options, words',
    [
        (['train_cfg.max_iter=3'], 'did you mean max_iters'),
        (['model.decode_head.type=FNCHead'], "type 'FNCHead' is not known"),
        (['model.backbone.type=mmvars.AbSVit'], "type 'mmvars.AbSVit' is not known"),
        (['train_dataloader.dataset.pipeline.0.type=Load'], "type 'Load' is not known"),
        (['train_dataloader.dataset.type=ADEDataset'], "type 'ADEDataset' is not known"),
        (['model.backbone.drop_pth=0.1'], "mmvars.AbSViT takes no 'drop_pth'"),
        (['model.backbone.arch=huge'], 'arch must be one of'),
        (['model.backbone.out_indices=0,7'], 'out_indices must be'),
        (['model.backbone.type=5'], 'cannot be built: TypeError: type must be a str or valid type'),
        (['data_root=/no/such/folder'], '/no/such/folder'),
        (['train_dataloader.dataset.data_root=5'], 'must be paths, got 5'),
        (['load_from=gone.pth'], 'load_from gone.pth does not exist'),
        (['optim_wrapper.paramwise_cfg.layer_decay_rate=3'], 'layer_decay_rate must be'),
        (['optim_wrapper.optimizer.type=Adamm'], "optimizer.type 'Adamm' is not known"),
        (['optim_wrapper.optimizer.lr=-1'], 'optim_wrapper cannot be built: ValueError: Invalid'),
        (['train_dataloader.batch_size=0'], 'got batch_size=0'),
        (['train_dataloader.batch_size=two'], "'train_dataloader.batch_size': the config has 2"),
        (
            ['train_dataloader.sampler.type=Infinite'],
            "type 'Infinite' is not known (mmseg::data sam",
        ),
        (['param_scheduler.0.type=Poly'], "type 'Poly' is not known (mmseg::parameter scheduler)"),
        (
            ['train_cfg.val_interval=0'],
            'train_cfg.val_interval must be a whole number of at least 1',
        ),
        (['val_dataloader=None'], 'val_evaluator should be either all None or not None'),
        (['log_level=LOUD'], 'log_level must be one of DEBUG'),
        (['model.backbone.alpha=much'], 'alpha must be a number'),
    ],
)
def test_training_options(options, words, toy, work_dir, capsys) -> None:
    message = refused(capsys, 'train', toy / 'seg.py', '--cfg-options', *options, work_dir=work_dir)
    assert words in message


@pytest.mark.parametrize(
    'framework, options, words',
    [
        ('seg', ['model.backbone.out_type=cls_token'], 'input to conv2d, but got input of size'),
        (
            'seg',
            ['model.backbone.out_indices=[0]'],
            'in_index=1 of FCNHead asks for features that are not there: the backbone has 1',
        ),
        (
            'seg',
            ['model.decode_head.in_channels=64'],
            'FCNHead has in_channels=64, but the features that it reads (in_index=1) have [48]',
        ),
        (
            'seg',
            ['model.decode_head.num_classes=3'],
            'differ: model.decode_head.num_classes=3, train_dataloader.dataset has 150 classes',
        ),
        ('cls', ['model.backbone.out_type=featmap'], 'mat1 and mat2 shapes cannot be multiplied'),
        (
            'cls',
            ['model.head.num_classes=1'],
            'train_dataloader.dataset has 2 classes, val_dataloader.dataset has 2 classes. '
            'Set --cfg-options num_classes=2 or else train_dataloader.dataset.metainfo.classes=',
        ),
    ],
)
def test_parts_that_do_not_fit_show_in_the_first_step(
    framework, options, words, toy, tmp_path, capsys
) -> None:
    folder = tmp_path / 'new'
    folder.mkdir()
    message = refused(
        capsys, 'train', toy / f'{framework}.py', '--cfg-options', *options, work_dir=folder
    )
    assert words in message
    assert not list(folder.rglob('*.pth'))


def test_options_must_be_pairs(toy, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tool('train', [str(toy / 'seg.py'), '--cfg-options', 'max_iters'])
    assert caught.value.code == 2
    assert "'max_iters' is not of the form KEY=VALUE" in capsys.readouterr().err
    arguments = (toy / 'seg.py', '--cfg-options', 'data_root=[a,(b')
    message = refused(capsys, 'train', *arguments, work_dir=tmp_path / 'work')
    assert message.startswith('--cfg-options data_root=[a,(b: ')


def test_a_work_dir_that_cannot_be_written(toy, capsys) -> None:
    assert run_tool('train', [str(toy / 'seg.py'), '--work-dir', '/proc/none']) == 2
    message = capsys.readouterr().err
    assert "the work dir '/proc/none' cannot be written (No such file" in message
    assert message.endswith('give another --work-dir\n')


def test_load_from_that_fills_nothing(toy, work_dir, checkpoint, capsys) -> None:
    (work_dir / 'seg.py').unlink()
    message = refused(
        capsys,
        'train',
        toy / 'seg.py',
        '--cfg-options',
        f'load_from={checkpoint}',
        work_dir=work_dir,
    )
    assert "fills no tensor of the backbone (its keys are like 'backbone.x'" in message
    assert 'mmvars convert' in message


def test_resume_with_nothing_to_resume(toy, work_dir, capsys) -> None:
    message = refused(capsys, 'train', toy / 'seg.py', '--resume', work_dir=work_dir)
    assert 'nothing to resume' in message and str(work_dir) in message
    message = refused(capsys, 'train', toy / 'seg.py', '--resume', 'gone.pth', work_dir=work_dir)
    assert 'gone.pth does not exist' in message
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'deleted.pth'))
    message = refused(capsys, 'train', toy / 'seg.py', '--resume', work_dir=work_dir)
    assert 'deleted.pth' in message


def test_resume_in_a_config_starts_a_new_run_where_there_is_none(
    toy, tmp_path, forget_runs, losses
) -> None:
    """mmengine's idiom for jobs that are stopped and started again with one command."""
    command = [
        str(toy / 'seg.py'),
        '--work-dir',
        str(tmp_path / 'a'),
        '--no-validate',
        '--cfg-options',
        'resume=True',
    ]
    assert run_tool('train', [*command, 'train_cfg.max_iters=1']) == 0
    forget_runs()
    assert run_tool('train', [*command, 'train_cfg.max_iters=2']) == 0
    assert sorted(losses(tmp_path / 'a')) == [1, 2]


def test_resume_from_weights_alone(toy, tmp_path, work_dir, capsys) -> None:
    (work_dir / 'seg.py').unlink()
    short = ['--work-dir', str(tmp_path / 'a'), '--no-validate', '--cfg-options', 'max_iters=1']
    assert run_tool('train', [str(toy / 'seg.py'), *short]) == 0
    state = torch.load(tmp_path / 'a' / 'iter_1.pth', weights_only=False)
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=state['state_dict'], meta=state['meta']), weights)
    capsys.readouterr()
    message = refused(capsys, 'train', toy / 'seg.py', '--resume', weights, work_dir=work_dir)
    assert 'holds weights only' in message and 'load_from' in message


def test_resume_from_a_state_that_does_not_say_where_it_stood(
    toy, tmp_path, work_dir, capsys
) -> None:
    (work_dir / 'seg.py').unlink()
    short = ['--work-dir', str(tmp_path / 'a'), '--no-validate', '--cfg-options', 'max_iters=1']
    assert run_tool('train', [str(toy / 'seg.py'), *short]) == 0
    state = torch.load(tmp_path / 'a' / 'iter_1.pth', weights_only=False)
    torch.save(dict(state, meta={}), tmp_path / 'state.pth')
    capsys.readouterr()
    message = refused(
        capsys, 'train', toy / 'seg.py', '--resume', tmp_path / 'state.pth', work_dir=work_dir
    )
    assert 'no training state' in message and 'load_from' in message


def test_resume_with_other_parameter_groups(toy, tmp_path, work_dir, capsys) -> None:
    (work_dir / 'seg.py').unlink()
    short = ['--work-dir', str(tmp_path / 'a'), '--no-validate', '--cfg-options', 'max_iters=1']
    assert run_tool('train', [str(toy / 'seg.py'), *short]) == 0
    config = tmp_path / 'other.py'
    config.write_text(
        (toy / 'seg.py').read_text()
        + 'optim_wrapper = dict(optimizer=optim_wrapper["optimizer"])\n'
    )
    capsys.readouterr()
    message = refused(
        capsys, 'train', config, '--resume', tmp_path / 'a' / 'iter_1.pth', work_dir=work_dir
    )
    assert 'optimizer' in message and 'load_from' in message


@pytest.mark.parametrize('framework', ['seg', 'cls'])
def test_a_checkpoint_of_another_model(framework, toy, work_dir, checkpoint, capsys) -> None:
    message = refused(capsys, 'test', toy / f'{framework}.py', checkpoint, work_dir=work_dir)
    assert 'into the model of this config: failed' in message
    assert 'UNEXPECTED in the file: 1\n  backbone.x\n' in message
    assert 'backbone.network.trunk.cls_token' in message  # all that is missing, by name
    assert 'trunk.blocks.{0..1}.attn.qkv.weight\n' in message  # like keys share a line
    assert 'mmvars convert' in message


def test_a_checkpoint_with_another_mixer_or_width(toy, tmp_path, work_dir, capsys) -> None:
    cfg = Config.fromfile(toy / 'cls.py')
    deit = dict(
        type='mmvars.VARS',
        arch=dict(trunk='deit_convstem', embed_dims=24, num_layers=2, num_heads=2),
        img_size=64,
        out_type='avg_featmap',
    )
    model = dict(deit, mixer='vars_d')
    for name, backbone in (
        ('mixer', dict(deit, mixer='self_attention')),
        ('width', dict(model, arch=dict(model['arch'], embed_dims=32))),
    ):
        tensors = MODELS.build(backbone).state_dict()
        state = {f'backbone.{key}': value for key, value in tensors.items()}
        torch.save(dict(state_dict=state, meta={}), tmp_path / f'{name}.pth')
    cfg.model.backbone = model
    cfg.model.head.in_channels = 24
    cfg.dump(tmp_path / 'vars.py')
    message = refused(
        capsys, 'test', tmp_path / 'vars.py', tmp_path / 'mixer.pth', work_dir=work_dir
    )
    assert 'The file mixes tokens with self_attention, the model with vars_d. Use the' in message
    assert 'network.blocks.{0..1}.attn.random_features\n' in message
    message = refused(
        capsys, 'test', tmp_path / 'vars.py', tmp_path / 'width.pth', work_dir=work_dir
    )
    assert 'blocks.{0..1}.attn.proj.weight  32x32 -> 24x24\n' in message
    assert 'mixes tokens' not in message


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['gone.pth'], 'does not exist'),
        (['HERE', '--out', 'x.txt', '--out-item', 'metrics'], 'metrics are written to'),
        (['HERE', '--out-item', 'pred'], 'give --out too'),
        (['HERE', '--show'], '--show needs a screen'),
        (['HERE', '--interval', '0'], '--interval must be a whole number of at least 1'),
        (['HERE', '--cfg-options', 'data_root=/no/such/folder'], '/no/such/folder'),
    ],
)
def test_test_arguments(arguments, words, toy, work_dir, checkpoint, capsys, monkeypatch) -> None:
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    arguments = [str(checkpoint) if a == 'HERE' else a for a in arguments]
    assert words in refused(capsys, 'test', toy / 'seg.py', *arguments, work_dir=work_dir)


def test_out_that_cannot_be_written(toy, work_dir, checkpoint, tmp_path, capsys) -> None:
    file = tmp_path / 'file'
    file.write_text('mine')
    message = refused(capsys, 'test', toy / 'seg.py', checkpoint, '--out', file, work_dir=work_dir)
    assert 'is a file: give a folder' in message
    message = refused(
        capsys, 'test', toy / 'seg.py', checkpoint, '--out', 'x.pkl', work_dir=work_dir
    )
    assert 'is a file: give a folder' in message
    message = refused(
        capsys, 'test', toy / 'cls.py', checkpoint, '--out', 'x.json', work_dir=work_dir
    )
    assert '.pkl' in message
    assert file.read_text() == 'mine'


def test_augmentation_that_no_one_described(toy, work_dir, checkpoint, tmp_path, capsys) -> None:
    config = tmp_path / 'seg.py'
    config.write_text((toy / 'seg.py').read_text() + 'tta_pipeline = None\n')
    message = refused(capsys, 'test', config, checkpoint, '--tta', work_dir=work_dir)
    assert '--tta needs tta_pipeline' in message


def test_flags_that_the_config_does_not_support(toy, work_dir, tmp_path, capsys) -> None:
    message = refused(capsys, 'train', toy / 'seg.py', '--auto-scale-lr', work_dir=work_dir)
    assert 'base_batch_size' in message
    config = tmp_path / 'seg.py'
    config.write_text((toy / 'seg.py').read_text() + "optim_wrapper['type'] = 'Apex'\n")
    assert 'has Apex' in refused(capsys, 'train', config, '--amp', work_dir=work_dir)
    message = refused(capsys, 'train', toy / 'seg.py', '--launcher', 'pytorch', work_dir=work_dir)
    assert 'torchrun' in message


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def _gray(path: Path) -> None:
    Image.new('L', (64, 64)).save(path)


def _foreign_labels(path: Path) -> None:
    Image.new('L', (64, 64), 200).save(path)


@pytest.mark.parametrize(
    'folder, damage, words',
    [
        ('images', _cut, 'is truncated or damaged'),
        pytest.param('images', _gray, 'holds a gray image', marks=pytest.mark.slow),
        pytest.param('annotations', _foreign_labels, 'hold the values 199', marks=pytest.mark.slow),
    ],
)
def test_bad_data_in_a_worker(folder, damage, words, toy, tmp_path, work_dir, capsys) -> None:
    (work_dir / 'seg.py').unlink()
    shutil.copytree(toy / 'ade', tmp_path / 'ade')
    for path in (tmp_path / 'ade' / folder / 'training').iterdir():
        damage(path)
    config = tmp_path / 'seg.py'
    config.write_text((toy / 'seg.py').read_text() + STRICT)
    message = refused(
        capsys, 'train', config, '--cfg-options', f'data_root={tmp_path / "ade"}', work_dir=work_dir
    )
    assert words in message and str(tmp_path / 'ade' / folder) in message
    assert message.count('\n') == 1
