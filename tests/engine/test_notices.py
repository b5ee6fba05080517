"""Which notices of other packages are left out."""

import warnings

import mmengine.logging
import pytest

from mmvars.engine.notices import NOTICES, leave_out_notices


def test_known_notices_are_left_out_and_nothing_else(monkeypatch, capsys) -> None:
    monkeypatch.setattr(mmengine.logging, 'print_log', mmengine.logging.print_log)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        leave_out_notices()
        for text in NOTICES:
            warnings.warn(f'{text} ... and so on', stacklevel=1)
        with pytest.raises(UserWarning, match='another'):
            warnings.warn('another', stacklevel=1)
        mmengine.logging.print_log('Could not import OneDL')
        mmengine.logging.print_log('Could not import mmcv')
    assert capsys.readouterr().out == 'Could not import mmcv\n'
