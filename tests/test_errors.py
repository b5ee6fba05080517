"""The messages of wrong names."""

import re

import pytest

from mmvars.errors import InputError, check_choice, did_you_mean


@pytest.mark.parametrize(
    'name, hint',
    [
        ('absvit_base', "; did you mean 'absvit_base_patch16'?"),
        ('VARS_D', "; did you mean 'vars_d'?"),
        ('resnet', ''),
        (3, ''),
    ],
)
def test_a_wrong_name_brings_the_nearest(name, hint) -> None:
    assert did_you_mean(name, ('absvit_base_patch16', 'vars_d')) == hint
    with pytest.raises(InputError, match=re.escape(f'vars_d; got {name!r}{hint}') + '$'):
        check_choice('arch', name, ('absvit_base_patch16', 'vars_d'))
