"""The report of hand-made rows: worst images, the page, results without a number."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mmvars.errors import InputError
from mmvars.robustness.page import render_page
from mmvars.robustness.pictures import worst_images
from mmvars.robustness.protocols import CLEAN, Protocol, Setting
from mmvars.robustness.report import (
    Result,
    check_comparable,
    check_own_report,
    compare,
    read_result,
    write_report,
)
from mmvars.robustness.rows import Rows

FOG, SNOW = Setting('fog', 1), Setting('snow', 1)
LABELS = [0, 1, 1, 0]
PREDICTIONS = {CLEAN: [0, 1, 1, 0], FOG: [0, 1, 0, 0], SNOW: [1, 0, 1, 0]}
PROTOCOL = Protocol('own', 1, 'by hand', ('clean', 'corrupted', 'rPC'), ('fog', 'snow'), (1,))


def result(folder, predictions=PREDICTIONS, **identity) -> Result:
    same = dict(content='x', seed=0, imagenet_c=False, corruptions_version=1, attacks_version=1)
    identity = dict(images=list('abcd')) | same | identity
    rows = Rows.of(folder, [(identity, list(predictions))])
    for setting, values in predictions.items():
        right = 100 * np.mean(np.equal(values, LABELS))
        metrics = {'accuracy/top1': right, 'x': 2 if setting == CLEAN else 4, 'matrix': None}
        rows.write(setting, dict(metrics=metrics, labels=LABELS, predictions=values))
    about = dict(config='a<b>.py', checkpoint='a.pth')
    return Result(PROTOCOL, rows, ('cat', '<dog>'), 'top-1', about)


def test_the_worst_image_of_the_worst_corruption_comes_first(tmp_path) -> None:
    assert worst_images(result(tmp_path), 4) == [(SNOW, 0), (FOG, 2)]
    unharmed = dict.fromkeys(PREDICTIONS, LABELS)
    assert worst_images(result(tmp_path / 'x', unharmed), 4) == []


def test_tables_by_hand(tmp_path) -> None:
    source = 'data:image/png;base64,AAAA'
    text = write_report(result(tmp_path), tmp_path, pictures=[('snow-1: <a>', source)])
    lines = [line.split() for line in text.splitlines()]
    assert ['clean', '100.00'] in lines
    assert ['fog', '75.00', '75.00', '25.00'] in lines
    assert ['snow', '50.00', '50.00', '50.00'] in lines
    assert ['<dog>', '100.00', '50.00', '50.00'] in lines  # 1 of 2, twice
    assert ['cat', '100.00', '75.00', '25.00'] in lines
    assert ['x', '2.00', '4.00'] in lines
    assert 'metrics of the evaluator (left out, as not one number: matrix)' in text
    content = json.loads((tmp_path / 'robustness.json').read_text())
    assert content['numbers']['rPC']['value'] == 0.625
    assert (tmp_path / 'robustness.csv').read_text().splitlines()[2].startswith('fog,1,0.75,')
    assert '| fog | 75.00 | 75.00 | 25.00 |' in (tmp_path / 'robustness.md').read_text()
    page = (tmp_path / 'robustness.html').read_text()
    assert '&lt;dog&gt;' in page and '<dog>' not in page and '<b>' not in page
    assert f'<img src="{source}"' in page and 'http' not in page
    cells = re.findall(r'background:#(\w{6});color:#\w+">([\d.]+)<', page)
    lightness = {float(score): sum(bytes.fromhex(color)) for color, score in cells}
    assert sorted(lightness, key=lightness.__getitem__) == [50, 75, 100]  # what is left is light
    bar = 'linear-gradient(90deg,#2b5c8a 50.0%,#e8a15b 50.0% 100.0%,#eee 100.0%)'
    assert page.count(bar) == 1  # <dog>, 1 of 2 twice


def test_a_result_is_read_again_and_compared(tmp_path) -> None:
    ours = result(tmp_path / 'ours')
    write_report(ours, tmp_path / 'ours')
    again = read_result(tmp_path / 'ours')
    assert again.protocol == ours.protocol and again.rows.identity(FOG) == ours.rows.identity(FOG)
    blind = {**PREDICTIONS, FOG: [1, 0, 1, 1]}
    theirs = result(tmp_path / 'theirs', blind)
    difference = compare(ours, theirs)
    assert difference['fog'].value == 0.5 and difference['snow'].value == 0
    assert difference['corrupted'].value == 0.25
    with pytest.raises(ValueError, match=r'images \(4 and 3, or others\)'):
        check_comparable(ours, result(tmp_path / 'z', images=list('abc')))
    with pytest.raises(ValueError, match=r'content \(x and y\)'):
        check_comparable(ours, result(tmp_path / 'w', content='y'))


def test_what_no_draw_has_is_no_number(tmp_path) -> None:
    wrong = dict.fromkeys(PREDICTIONS, [1 - label for label in LABELS])
    text = write_report(result(tmp_path, wrong), tmp_path)
    content = json.loads((tmp_path / 'robustness.json').read_text())
    assert content['numbers']['rPC'] == dict(value=None, low=None, high=None)
    assert ['rPC', '-'] in [line.split() for line in text.splitlines()]


def test_a_page_without_a_clean_score_has_no_colors() -> None:
    table = ('top-1, %', [['', '%'], ['imagenet-a', '12.00']])
    page = render_page('a', {}, [table, table], float('nan'), [])
    assert page.count('<td>12.00</td>') == 2 and 'gradient' not in page


@pytest.mark.parametrize('levels', [(1, 2, 3, 4, 5), (3,)])
def test_errors_over_alexnets_are_of_all_five_severities(tmp_path, levels) -> None:
    settings = [CLEAN, *(Setting('fog', level) for level in levels)]
    made = result(tmp_path, dict.fromkeys(settings, LABELS))
    protocol = replace(PROTOCOL, numbers=('clean', 'mCE'), changes=('fog',), levels=levels)
    text = write_report(replace(made, protocol=protocol), tmp_path)
    assert (' CE\n' in text) == (len(levels) == 5)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('cat', 'dog', 'cow'), r'--twins: .* differ in number of classes \(2 and 3\)'),
        (('cat', 'cow'), r'differ in classes \(<dog> and cow\)'),
        (('0', '1'), None),
    ],
)
def test_results_of_other_classes_are_not_compared(tmp_path, classes, message) -> None:
    ours = result(tmp_path)
    theirs = replace(ours, classes=classes)
    if message is None:
        return check_comparable(ours, theirs, '--twins')
    with pytest.raises(ValueError, match=message):
        check_comparable(ours, theirs, '--twins')


def test_the_report_of_another_model_is_not_replaced(tmp_path) -> None:
    ours = result(tmp_path)
    check_own_report(ours, tmp_path)  # there is none
    write_report(ours, tmp_path)
    check_own_report(ours, tmp_path)
    other = replace(ours, about={**ours.about, 'checkpoint': 'b.pth'})
    with pytest.raises(InputError, match=r'--out: .* is the report of a<b>.py a.pth: give another'):
        check_own_report(other, tmp_path)
