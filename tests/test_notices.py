"""Which notices of other packages are left out."""

import warnings

import mmengine.logging

from mmvars.notices import NOTICES, leave_out_notices


def test_known_notices_are_left_out_and_nothing_else(monkeypatch, capsys) -> None:
    monkeypatch.setattr(mmengine.logging, 'print_log', mmengine.logging.print_log)
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        monkeypatch.setattr(warnings, 'showwarning', lambda message, *_: shown.append(str(message)))
        leave_out_notices()
        leave_out_notices()
        for text in (*NOTICES, 'another'):
            warnings.warn(f'{text} ... and so on', stacklevel=1)
        mmengine.logging.print_log('Could not import OneDL')
        mmengine.logging.print_log('Could not import mmcv')
    assert shown == ['another ... and so on']
    assert capsys.readouterr().out == 'Could not import mmcv\n'
