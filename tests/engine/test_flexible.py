"""What strategies write and read."""

import pytest
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.runner import FlexibleRunner

from mmvars.engine.flexible import StrictFlexibleRunner
from mmvars.engine.safe_load import check_source
from mmvars.errors import InputError


def test_fsdp_must_write_what_can_be_read_again(monkeypatch) -> None:
    strategy = FSDPStrategy.__new__(FSDPStrategy)
    strategy._init_state_dict_cfg('local')  # mmengine's default
    monkeypatch.setattr(FlexibleRunner, 'build_strategy', lambda *args, **kwargs: strategy)
    runner = StrictFlexibleRunner.__new__(StrictFlexibleRunner)
    with pytest.raises(InputError, match='--cfg-options strategy.state_dict_cfg=full'):
        runner.build_strategy()
    strategy._init_state_dict_cfg('full')
    assert runner.build_strategy() is strategy


def test_a_checkpoint_may_be_a_folder_where_a_strategy_reads_it(tmp_path) -> None:
    with pytest.raises(InputError, match='is a folder'):
        check_source(Config(), str(tmp_path), 'checkpoint')
    flexible = Config(dict(runner_type='FlexibleRunner'))
    check_source(flexible, str(tmp_path), 'checkpoint')
    with pytest.raises(InputError, match='does not exist'):
        check_source(flexible, str(tmp_path / 'none'), 'checkpoint')
