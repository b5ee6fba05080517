"""A framework that is installed but fails to import must not take the other one down."""

import json
import subprocess
import sys

import pytest

BUILD = """
import json, sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == f'{sys.argv[1]}.models':
            exec(sys.argv[2])

sys.meta_path.insert(0, Broken())
from mmengine.registry import MODELS
backbone = dict(type='mmvars.ViT', arch=dict(embed_dims=24, num_layers=1, num_heads=2), img_size=32,
                out_type='cls_token')
heads = dict(
    EncoderDecoder=dict(decode_head=dict(type='mmseg.FCNHead', in_channels=24, channels=8,
                                         num_classes=3, norm_cfg=dict(type='BN'))),
    ImageClassifier=dict(head=dict(type='mmpretrain.LinearClsHead', in_channels=24,
                                   num_classes=3)))
found = {}
for name, head in heads.items():
    try:
        found[name] = type(MODELS.build(dict(type=f'mmvars.{name}', backbone=backbone,
                                             **head))).__module__
    except Exception as error:
        found[name] = f'{type(error).__name__}: {error}'
        found['cause'] = type(error.__cause__).__name__
print('FOUND' + json.dumps(found))
"""
NO_OPS = ('ModuleNotFoundError', "No module named 'mmcv._ext'")
WRONG_VERSION = ('AssertionError', 'MMCV==2.2.0 is used but incompatible')


@pytest.mark.parametrize(
    'broken, kind, message, asked, works, module',
    [
        pytest.param(
            'mmseg',
            *NO_OPS,
            'EncoderDecoder',
            'ImageClassifier',
            'mmvars.models.classifiers',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            'mmseg',
            *WRONG_VERSION,
            'EncoderDecoder',
            'ImageClassifier',
            'mmvars.models.classifiers',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            'mmpretrain',
            *NO_OPS,
            'ImageClassifier',
            'EncoderDecoder',
            'mmvars.models.segmentors',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_other_framework_works_and_the_broken_one_says_why(
    broken, kind, message, asked, works, module, repo
) -> None:
    pytest.importorskip(
        f'{"mmpretrain" if broken == "mmseg" else "mmseg"}.models', exc_type=ImportError
    )
    failure = f'raise {kind}({message!r})'
    done = subprocess.run(
        [sys.executable, '-c', BUILD, broken, failure],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition('FOUND')[2])
    assert found[works] == module
    assert found[asked].startswith(f'InputError: mmvars.{asked} needs {broken}')
    assert f'{kind}: {message}' in found[asked] and 'mmvars doctor' in found[asked]
    assert found['cause'] == kind


@pytest.mark.slow
def test_our_own_import_errors_are_not_taken_for_the_frameworks(repo) -> None:
    pytest.importorskip('mmpretrain.models')
    broken = BUILD.partition('from mmengine')[0].replace(
        "f'{sys.argv[1]}.models'", "'mmvars.models.classifiers'"
    )
    done = subprocess.run(
        [sys.executable, '-c', broken + 'import mmvars.models', '', 'raise ImportError("our own")'],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and done.stderr.endswith('ImportError: our own\n'), done.stderr
