"""What `--brief` shows of a log."""

import logging

import pytest
from mmengine.logging import MMLogger

from mmvars.engine.brief import brief_console, short_line

TRAIN = (
    'Iter(train) [ 20/160]  base_lr: 5.0000e-04 lr: 5.0000e-04  eta: 1 day, 0:00:05  time: 1.8699  '
    'data_time: 0.4605  loss: 3.2273  decode.loss_ce: 2.3109'
)


def _record(text: str, level: int = logging.INFO, path: str = 'mmengine/x.py') -> logging.LogRecord:
    return logging.LogRecord('x', level, path, 1, text, (), None)


@pytest.mark.parametrize(
    'text, shown',
    [
        (TRAIN, 'train 20/160  loss 3.2273  1 day, 0:00:05 left'),
        (
            'Epoch(train)  [3][ 10/100]  lr: 5.0e-04  eta: 0:00:05  time: 1.8  loss: 3.2273',
            'epoch 3  train 10/100  loss 3.2273  0:00:05 left',
        ),
        ('Iter(val) [ 1/16]    eta: 0:00:08  time: 0.5642  data_time: 0.2450  ', None),
        (
            'Iter(val) [16/16]    aAcc: 26.4700  mIoU: 8.5100  data_time: 0.0290  time: 0.2486',
            'val 16/16  aAcc 26.4700  mIoU 8.5100',
        ),
        (
            'Epoch(val) [1][16/16]    accuracy/top1: 73.2000  data_time: 0.0  time: 0.1',
            'epoch 1  val 16/16  accuracy/top1 73.2000',
        ),
        ('Saving checkpoint at 160 iterations', 'Saving checkpoint at 160 iterations'),
        ('Config:\nmodel = dict()', None),
    ],
)
def test_progress_and_scores_are_shown_in_short(text, shown) -> None:
    assert short_line(_record(text)) == shown


def test_warnings_and_what_mmvars_says_are_shown_whole() -> None:
    assert short_line(_record('careful', logging.WARNING)) == 'WARNING: careful'
    assert short_line(_record('data_root: a -> b', path=short_line.__code__.co_filename)) == (
        'data_root: a -> b'
    )


def test_a_line_for_every_frozen_parameter_is_not_shown() -> None:
    """mmengine warns of each where the optimizer's `custom_keys` are in use."""
    text = 'backbone.blocks.0.norm1.bias is skipped since its requires_grad=False'
    assert short_line(_record(text, logging.WARNING)) is None


def test_the_file_has_what_the_console_has_not(tmp_path, capsys) -> None:
    with brief_console():
        brief = MMLogger('brief', 'brief', str(tmp_path / 'brief.log'))
    whole = MMLogger('whole', 'whole')
    for text in ('Config:', TRAIN):
        brief.info(text)
    whole.info('Config:')
    brief.handlers[1].close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f'full log: {tmp_path / "brief.log"}',
        'train 20/160  loss 3.2273  1 day, 0:00:05 left',
    ]
    assert len(lines) == 3 and 'Config:' in lines[2]
    log = (tmp_path / 'brief.log').read_text()
    assert 'Config:' in log and 'decode.loss_ce' in log
