"""The variants of `mmvars compare`: their files, and the one that ships."""

import pytest
from mmengine.config import Config

from mmvars.engine import compare
from mmvars.errors import InputError


@pytest.mark.parametrize('name, text', [
    ('v.yml', "variants: {a: {}, b: {x.y: [1, 2]}}\ncfg_options: {size: {w: 3}, z: 1}"),
    ('v.py', "variants = {'a': {}, 'b': {'x.y': [1, 2]}}\ncfg_options = dict(size=dict(w=3), z=1)"),
])
def test_files_of_variants(name, text, tmp_path) -> None:
    (tmp_path / name).write_text(text)
    common, table = compare.read_variants(
        str(tmp_path / name), ["c: k=1,2 m='p q' n=true"], dict(z=2))
    assert common == {'size': {'w': 3}, 'z': 2}  # the command line wins
    assert table == {'a': {}, 'b': {'x.y': [1, 2]}, 'c': {'k': [1, 2], 'm': 'pq', 'n': True}}


@pytest.mark.parametrize('text, said', [
    ('variants: [1', 'cannot be read'), ('x: 1', 'must hold variants'),
    ('variants: {a: {}}\nextra: 1', 'holds extra'), ('variants: {a: 3}', "'a' must be a dict"),
    ('variants: {1: {}}', 'variant 1: a name'),
])
def test_bad_files_of_variants(text, said, tmp_path) -> None:
    (tmp_path / 'v.yml').write_text(text)
    with pytest.raises(InputError, match=said):
        compare.read_variants(str(tmp_path / 'v.yml'), [], {})


def test_the_shipped_designs_build(repo, tmp_path) -> None:
    """Tables 2.3, 2.5 and 2.6, on the trunk that is small enough to build here."""
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    arguments = ['vit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256', '--seeds', '0',
                 '--work-dir', str(tmp_path), '--variants']
    folder = repo / 'configs' / 'absvit'
    args = compare.parse_args([*arguments, str(folder / 'top-down-designs_mini.yml')])
    runs = compare.plan_runs(args)
    compare._check_variants(runs)
    built = {run.variant: run.cfg.model.backbone for run in runs}
    assert list(built) == ['plain', 'feedback', 'perceiver_io', 'mask_attention',
                           'absvit_without_reconstruction_loss', 'absvit',
                           'absvit_qkv_without_reconstruction_loss', 'absvit_qkv']
    assert built.pop('plain').type == 'mmvars.ViT'
    assert {backbone.type for backbone in built.values()} == {'mmvars.AbSViT'}
    assert {name: (b.get('design', 'absvit'), b.get('reconstruction_loss_weight', 0))
            for name, b in built.items() if name.startswith('absvit')} == {
        'absvit_without_reconstruction_loss': ('absvit', 0), 'absvit': ('absvit', 0.1),
        'absvit_qkv_without_reconstruction_loss': ('absvit_qkv', 0),
        'absvit_qkv': ('absvit_qkv', 0.1)}
    for name in ('feedback', 'perceiver_io', 'mask_attention'):
        assert built[name].design == name
    # The full-size table differs in the options of all runs alone.
    whole = compare.parse_args([*arguments, str(folder / 'top-down-designs.yml')])
    assert (whole.table, whole.common) == (args.table, {})


@pytest.mark.parametrize('config', ['vit-tiny-p16-absvit-qkv_8xb128-coslr-300e_in1k',
                                    'vit-tiny-p16-absvit-qkv_1xb16-20e_mini-imagenet-64px'])
def test_the_comparison_trains_qkv_as_its_config_does(config, repo) -> None:
    folder = repo / 'configs' / 'absvit'
    backbone = Config.fromfile(folder / f'{config}.py').model.backbone
    _, table = compare.read_variants(str(folder / 'top-down-designs.yml'), [], {})
    options = {key.rpartition('.')[2]: value for key, value in table['absvit_qkv'].items()}
    assert options == {key: backbone[key] for key in options}
    assert options['reconstruction_loss_weight'] == 0.1
