"""Options of mixers, trunks and their hook that make no sense: one line, and exit status 2."""

from pathlib import Path

import pytest

from mmvars.cli import run_tool

VARS = """
model['backbone'] = dict(
    type='mmvars.VARS', mixer={mixer!r}, mixer_cfg=dict(num_steps=2), img_size=64,
    arch=dict(trunk={trunk!r}, embed_dims=48, num_layers=1, num_heads=3))
model['decode_head'].update(in_channels=48, in_index=0)
"""


def refused(capsys, config: Path, *options: str) -> str:
    folder = config.with_name('work')
    argv = [str(config), '--work-dir', str(folder), '--cfg-options', *options]
    assert run_tool('train', argv) == 2
    message = capsys.readouterr().err
    assert 'Traceback' not in message
    assert not list(folder.rglob('*.pth'))
    return message.split('mmvars: ', 1)[1]


@pytest.mark.parametrize(
    'trunk, mixer, options, words',
    [
        (
            'rvt',
            'vars_d',
            ['mixer_cfg.sparsity=-1'],
            'sparsity must be a number in [0, 1e+06], got -1',
        ),
        ('rvt', 'vars_s', ['mixer_cfg.sparsity=much'], "in [0, 1e+06], got 'much'"),
        (
            'rvt',
            'vars_sd',
            ['mixer_cfg.num_steps=-1'],
            'num_steps must be a whole number in [0, 1000]',
        ),
        (
            'rvt',
            'vars_s',
            ['mixer_cfg.num_steps=1.5'],
            'num_steps must be a whole number in [0, 1000]',
        ),
        ('rvt', 'vars_d', ['mixer_cfg.feature_ratio=0'], 'feature_ratio must'),
        ('rvt', 'vars_sd', ['mixer_cfg.feature_ratio=0.01'], 'feature_ratio must'),
        ('rvt', 'vars_s', ['mixer_cfg.atoms_per_channel=0'], 'atoms_per_channel must be a whole'),
        ('rvt', 'vars_d', ['mixer_cfg.preset=paper'], 'preset must be one of release, thesis; got'),
        (
            'rvt',
            'vars_d',
            ['mixer_cfg.steps=3'],
            'takes no option steps; it takes preset, num_steps',
        ),
        ('rvt', 'vars_d', ['mixer_cfg.shrinkage=relu'], "mixer 'vars_d' takes no option shrinkage"),
        ('rvt', 'vars_d', ['mixer=vars_x'], 'vars_x'),
        ('rvt', 'vars_d', ['arch.num_heads=5'], 'num_heads'),
        ('rvt', 'vars_d', ['arch=rvt_huge'], 'deit_convstem_tiny, '),
        ('rvt', 'vars_d', ['arch.trunk=resnet'], "arch['trunk'] must be one of vit, rvt, "),
        ('rvt', 'vars_d', ['arch.embed_dims=[16,32]'], 'one number for each stage'),
        ('rvt', 'vars_sd', ['img_size=0'], 'img_size'),
        ('deit_convstem', 'vars_d', ['out_type=cls'], 'out_type must be one of'),
        ('gfnet', 'vars_s', ['out_type=cls_token'], "out_type='cls_token' needs a class token"),
    ],
)
def test_options_of_mixers_and_trunks(trunk, mixer, options, words, toy, tmp_path, capsys) -> None:
    config = tmp_path / 'vars.py'
    config.write_text((toy / 'seg.py').read_text() + VARS.format(trunk=trunk, mixer=mixer))
    message = refused(capsys, config, *(f'model.backbone.{option}' for option in options))
    assert words in message
    assert message.count('\n') == 1


@pytest.mark.parametrize(
    'options, words',
    [
        ('interval=0', 'LipschitzUpdateHook: interval must be a whole number of at least 1, got 0'),
        ('rate=2', 'LipschitzUpdateHook: rate must be a number in [0, 1], got 2'),
        ('every=3', "unexpected keyword argument 'every'"),
    ],
)
def test_options_of_the_step_size_hook(options, words, toy, tmp_path, capsys) -> None:
    config = tmp_path / 'vars.py'
    config.write_text(
        (toy / 'seg.py').read_text() + "custom_hooks = [dict(type='mmvars.LipschitzUpdateHook')]\n"
    )
    message = refused(capsys, config, f'custom_hooks.0.{options}')
    assert words in message
