"""Classes by number and by name."""

import pytest

from mmvars.analysis import find_class, short_name
from mmvars.errors import InputError

NAMES = ['tench, Tinca tinca', 'Golden Retriever', 'crane', 'crane', 'tabby, tabby cat']


@pytest.mark.parametrize('wanted,index', [('0', 0), (' 4', 4), ('golden retriever', 1),
                                          ('tinca TINCA', 0), ('tench, tinca tinca', 0),
                                          ('tabby', 4)])
def test_a_class_is_found(wanted, index):
    assert find_class(wanted, 5, NAMES) == index


@pytest.mark.parametrize('wanted,message', [
    ('5', 'class 5 does not exist: classes are numbered from 0 to 4'),
    ('-1', 'class -1 does not exist'),
    ('golden retreiver', "did you mean 'golden retriever'"),
    ('zzz', "the 5 classes start with 'tench', 'Golden Retriever'"),
    ('crane', r'not unique: classes \[2, 3\] have it'),
])
def test_what_is_no_class_is_explained(wanted, message):
    with pytest.raises(InputError, match=message):
        find_class(wanted, 5, NAMES)


def test_without_names_only_numbers_work():
    assert find_class('3', 5) == 3
    with pytest.raises(InputError, match='have no names here; give its number, 0 to 4'):
        find_class('tench', 5)


def test_the_short_name_is_the_first_synonym():
    assert short_name('tench, Tinca tinca') == 'tench'
