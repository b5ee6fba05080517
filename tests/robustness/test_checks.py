"""Whether attacks are believed: each check alone, in the report, and in comparisons."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_models import small_images
from test_attacks import Classifier, batch
from test_report import PROTOCOL, result
from torch import nn

from mmvars.robustness.attacks import Attacker
from mmvars.robustness.protocols import CLEAN, Setting
from mmvars.robustness.report import write_report
from mmvars.robustness.twins import write_twins

LABELS = [0, 1, 1, 0]
ATTACKS = replace(PROTOCOL, numbers=(), changes=('fgsm', 'pgd'), levels=(1,))
FEW, MANY, NOISE, OVERWHELMING = (
    Setting('pgd', 1), Setting('pgd20', 1), Setting('noise', 1), Setting('pgd', 64),
)  # fmt: skip
WORKED = {
    CLEAN: [0, 1, 1, 0],
    Setting('fgsm', 1): [0, 1, 0, 0],
    FEW: [0, 0, 0, 0],
    MANY: [0, 0, 0, 1],
    NOISE: [0, 1, 1, 0],
    OVERWHELMING: [1, 0, 0, 1],
}


def attacked(folder, zero=0.0, changes=None):
    """Four images under attack, one of which has a share of values without gradient."""
    made = result(folder, {**WORKED, **(changes or {})})
    for setting in WORKED:
        row = made.rows.read(setting)
        shares = [0.0, 0.1, zero, None] if setting != CLEAN else [None] * 4
        made.rows.path(setting).write_text(json.dumps(dict(row, zero_gradient=shares)))
    about = dict(made.about, protocol='own', images='4', preprocessing='same')
    return replace(made, protocol=ATTACKS, about=about)


def verdict(made, folder, against=None) -> dict:
    write_report(made, folder, against)
    content = json.loads((folder / 'robustness.json').read_text())
    return content['about']


def test_an_attack_that_worked_is_believed(tmp_path) -> None:
    made = attacked(tmp_path)
    about = verdict(made, tmp_path)
    assert about['believed'] == 'all four checks hold'
    text = (tmp_path / 'robustness.txt').read_text()
    lines = [line.split() for line in text.splitlines()]
    assert ['worst', 'case', '50.00', '50.00', '50.00'] in lines
    assert sum(line[-1:] == ['yes'] for line in lines) == 4


@pytest.mark.parametrize(
    ('zero', 'changes', 'message'),
    [
        (1.0, {}, 'every image has a gradient: 1 of 4 have none'),
        (0.0, {MANY: LABELS, FEW: [1, 0, 0, 1]}, 'more steps do not help the model'),
        (0.0, {OVERWHELMING: [0, 1, 0, 1]}, '64/255 leave nearly nothing (pgd): 50.00 of 100.00'),
        (0.0, {NOISE: [0, 0, 0, 0]}, 'noise is weaker than PGD (at 1/255): 50.00 under noise'),
    ],
)
def test_each_sign_of_failure_alone_is_named(tmp_path, zero, changes, message) -> None:
    made = attacked(tmp_path, zero, changes)
    believed = verdict(made, tmp_path)['believed']
    assert believed.startswith('NOT TO BE BELIEVED, for') and message in believed
    assert believed.count(';') == 0
    sound = attacked(tmp_path / 'sound')
    about = verdict(sound, tmp_path / 'sound', made)
    assert message in about['believed of the other'] and about['believed'].startswith('all')
    text = write_twins(('x', 'y'), [sound], [made], tmp_path)
    assert f'NOT TO BE BELIEVED of a<b>.py, for this does not hold: {message}' in text
    assert len(json.loads((tmp_path / 'twins.json').read_text())['doubts']) == 1


def test_a_gradient_that_is_no_number_is_none() -> None:
    class Broken(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) * (images.sum() - images.sum()).sqrt()  # 0, slope inf

    model = Classifier(Broken())
    model.weight = nn.Parameter(torch.zeros(1))
    pixels, labels = small_images()
    data, zero = Attacker(model, 'fgsm', 1)(batch(pixels, labels % 3))
    assert zero == [1.0] * 6 and np.isfinite(data['inputs'][2].numpy()).all()
