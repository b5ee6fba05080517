"""Which errors of mmengine, the frameworks and torch are turned into a message, and which not."""

from urllib.error import HTTPError, URLError

import pytest
import torch
from torch import nn

from mmvars.engine.errors import building, format_config_error, user_errors
from mmvars.errors import InputError


def raised(function) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: B017 any error that the function raises
        function()
    return caught.value


@pytest.mark.parametrize(
    'error, words',
    [
        (
            KeyError('Foo is not in the mmseg::model registry. Please check'),
            "type 'Foo' is not known",
        ),
        (TypeError("F.__init__() got an unexpected keyword argument 'x'"), "argument 'x'"),
        (TypeError('NoneType takes no arguments'), 'pycocotools is installed beside'),
        (IndexError('Target 7 is out of bounds.'), 'a label is 7'),
        (
            AssertionError(
                'Initialize dataset with `reduce_zero_label` as False but when load annotation '
                'the `reduce_zero_label` is True'
            ),
            'reduce_zero_label=False',
        ),
        (
            AssertionError(
                "The number of subfolders (3) doesn't match the number of specified classes "
                '(1000). Please check the data folder.'
            ),
            'num_classes=3 train_dataloader.dataset.metainfo.classes=NAME,... val_dataloader.da',
        ),
        (URLError('[Errno -2] Name or service not known'), 'cannot be downloaded (urlopen error'),
        (HTTPError('http://x', 404, 'Not Found', None, None), '(HTTP Error 404: Not Found)'),
        (raised(lambda: nn.BatchNorm2d(2)(torch.zeros(1, 2, 1, 1))), 'one value a channel'),
        (
            raised(lambda: torch.zeros(40, 56)[torch.zeros(80, 112) > 0]),
            'labels have [80, 112] pixels and predictions [40, 56]: the test pipeline resizes',
        ),
        (FileNotFoundError(2, 'No such file', 'a.png'), 'file not found: a.png'),
    ],
)
def test_known_errors_bring_a_remedy(error, words) -> None:
    assert words in format_config_error(error)


def test_bad_input_below_another_error_is_what_counts() -> None:
    try:
        try:
            raise InputError('arch must be ...')
        except InputError:
            raise KeyError('anything')  # noqa: B904 as mmengine does
    except KeyError as error:
        assert format_config_error(error) == 'arch must be ...'


@pytest.mark.parametrize(
    'misfit',
    [
        lambda: nn.Conv2d(3, 4, 1)(torch.zeros(1, 5, 8, 8)),
        lambda: nn.Conv2d(3, 4, 1)(torch.zeros(3)),
        lambda: nn.Linear(3, 4)(torch.zeros(2, 5)),
        lambda: torch.zeros(3) + torch.zeros(4),
        lambda: ()[1],
        lambda: torch.zeros(3).view(2, 2),
        lambda: nn.LayerNorm(3)(torch.zeros(2, 4)),
        lambda: torch.cat([torch.zeros(1, 2), torch.zeros(2, 3)]),
    ],
)
def test_shapes_that_do_not_fit_are_the_config_s_before_the_first_step_alone(misfit) -> None:
    error = raised(misfit)
    assert 'do not fit one another' in format_config_error(error)
    assert format_config_error(error, is_first_step=False) is None


@pytest.mark.parametrize(
    'error',
    [
        AttributeError("'Linear' object has no attribute 'x'"),
        ValueError('a bug'),
        RuntimeError('Trying to backward through the graph a second time'),
    ],
)
def test_others_keep_their_traceback(error) -> None:
    assert format_config_error(error) is None
    with pytest.raises(type(error)), user_errors():
        raise error


@pytest.mark.parametrize(
    'error',
    [
        ValueError('a bug'),
        KeyError('`cfg` or `default_args` must contain the key "type", but got'),
        ValueError('train_dataloader, train_cfg should be either all None or not None, but'),
    ],
)
def test_while_a_part_is_built_its_entries_are_to_blame(error) -> None:
    name = type(error).__name__
    with pytest.raises(InputError, match=f'model cannot be built: {name}: .{{5,}}. Correct its'):
        with building('model'):
            raise error
