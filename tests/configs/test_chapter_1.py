"""Configs of chapter 1: every mixer in every host, and what the built models have to do with it."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
FAMILIES = ('deit', 'gfnet', 'rvt', 'vars')
PATHS = sorted(p for family in FAMILIES for p in CONFIGS.glob(f'{family}/*.py'))
MIXERS = ('performer', 'vars-d', 'vars-sd', 'vars-s')
TABLE_1_2 = {'deit-tiny-p16', 'gfnet-tiny-p16', 'rvt-tiny-p16', 'gfnet-convstem-tiny-p16',
             'deit-convstem-tiny-p16-performer', 'rvt-tiny-p16-performer',
             *(f'{host}-tiny-p16-vars-{kind}' for kind in ('s', 'd', 'sd')
               for host in ('deit-convstem', 'gfnet-convstem', 'rvt'))}
"""Rows of Table 1.2 that are ours; DeiT*, GFNet* and RVT* among them."""

EXEMPT_BASELINES = {'pit': {'cls_token', 'pos_embed'}, 'convit': {'cls_token', 'pos_embed'},
                    'swin': {'relative_position_bias_table'}, 'convnext': set()}


@cache
def _load(path: Path) -> Config:
    return Config.fromfile(str(path))


def test_every_mixer_is_there_for_every_task():
    """Every host with every mixer for every task (issue 3, item 7)."""
    names = {p.stem for p in PATHS}
    full = ('160k_ade20k-512x512', '40k_cityscapes-512x1024', '20k_voc12-512x512')
    minis = ('ade20k-128x128', 'cityscapes-128x256', 'voc12-128x128')
    wanted = {f'{host}-s16-{mixer}_upernet_2xb8-{rest}' for host in ('rvt', 'deit-convstem')
              for mixer in MIXERS for rest in full}
    wanted |= {f'rvt-s16_upernet_2xb8-{rest}' for rest in full}
    wanted |= {f'rvt-ti16{mixer}_upernet_1xb8-400iter_mini-{rest}'
               for mixer in ('', *(f'-{m}' for m in MIXERS)) for rest in minis}
    wanted |= {f'rvt-tiny-p16{mixer}_1xb16-20e_mini-imagenet-64px'
               for mixer in ('', *(f'-{m}' for m in MIXERS))}
    wanted |= {f'{host}_8xb128-coslr-300e_in1k' for host in TABLE_1_2}
    assert wanted <= names
    assert len(wanted) == 62


def test_what_is_decayed(built):
    """As in the releases: all but 1-D parameters, positions and class tokens."""
    checked = 0
    for path, facts in built.items():
        if path in PATHS or 'upernet' not in path.name:
            assert facts['decay']['flat_decayed'] == [], path.name
            others = facts['decay']['others_not_decayed']
            if path.parent.name == 'baselines':  # the same, and as in the release of Swin
                kinds = {name.rpartition('.')[2] for name in others}
                assert kinds == EXEMPT_BASELINES[path.name.partition('-')[0]], path.name
            else:
                assert others == facts['exempt'], path.name
            checked += 1
    assert checked >= 109
    vars_sd = built[CONFIGS / 'vars' / 'deit-convstem-tiny-p16-vars-sd_8xb128-coslr-300e_in1k.py']
    assert [name.rpartition('.')[2] for name in vars_sd['exempt']] == ['cls_token', 'pos_embed']


def test_mixers_and_strides(built):
    """Beside the arguments (checked with the names), what the built backbones are."""
    own = {'deit': 'self_attention', 'rvt': 'self_attention', 'gfnet': 'global_filter'}
    for path in PATHS:
        facts, name = built[path], path.stem.partition('_')[0]
        wanted = re.search(r'performer|vars-(sd|s|d)$', name)
        wanted = wanted[0].replace('-', '_') if wanted else own[path.parent.name]
        assert facts['mixer'] == wanted, path.name
        if 'upernet' in path.name:
            last = 32 if name.startswith('rvt-ti16') else 16
            assert facts['strides'] == [16, 16, 16, last], path.name
            auxiliary = facts['heads']['auxiliary_head']
            assert facts['strides'][auxiliary['in_index']] == 16
            assert auxiliary['in_index'] == (2 if last == 32 else 3)


def test_step_sizes_are_refreshed_where_there_are_any(built):
    with_hook = 0
    for path, facts in built.items():
        hooks = [dict(h) for h in _load(path).custom_hooks if h.type == 'mmvars.StepSizeHook']
        wanted = [dict(type='mmvars.StepSizeHook', interval=100, rate=.1)]
        assert hooks == (wanted if facts['mixer'] == 'vars_s' else []), path.name
        with_hook += bool(hooks)
    assert with_hook >= 13


def test_compared_mixers_differ_in_the_mixer_alone():
    """Configs of a host and a task are the same but for the mixer and what it needs."""
    compared = 0
    for path in CONFIGS.glob('vars/*.py'):
        mixer = re.search(r'vars-(sd|s|d)(?=_)', path.name)[0]
        other = path.with_name(path.name.replace(mixer, 'vars-d'))
        ours, theirs = _load(path).to_dict(), _load(other).to_dict()
        for cfg in (ours, theirs):
            for key in ('mixer', 'mixer_cfg', 'out_type'):
                cfg['model']['backbone'].pop(key, None)
            cfg['custom_hooks'] = [h for h in cfg['custom_hooks'] if 'StepSize' not in h['type']]
            cfg['optim_wrapper']['paramwise_cfg'].pop('custom_keys', None)
        assert ours == theirs, path.name
        compared += path != other
    assert compared >= 26


def test_metafiles_count_parameters_in_the_models(built):
    counted = 0
    for metafile in CONFIGS.glob('*/metafile.yml'):
        for model in yaml.safe_load(metafile.read_text())['Models']:
            if (number := model['Metadata'].get('Parameters')) is not None:
                assert number == built[ROOT / model['Config']]['parameters'], model['Name']
                counted += 1
    assert counted >= 23


def test_sizes_are_the_released_ones(built):
    """Trainable parameters of Table 1.2, in millions, as counted without this package."""
    for name, millions in (
            ('rvt/rvt-tiny-p16', 8.646), ('gfnet/gfnet-tiny-p16', 7.512),
            ('deit/deit-convstem-tiny-p16-performer', 5.673),
            ('rvt/rvt-tiny-p16-performer', 8.646), ('vars/rvt-tiny-p16-vars-d', 8.029),
            ('vars/rvt-tiny-p16-vars-sd', 9.005), ('vars/rvt-tiny-p16-vars-s', 9.206)):
        path = CONFIGS / f'{name}_8xb128-coslr-300e_in1k.py'
        assert built[path]['parameters'] / 1e6 == pytest.approx(millions, abs=5e-4)
