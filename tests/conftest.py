"""Fixtures that more than one folder of tests uses."""

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm.layers.weight_init
import torch

gc.disable()  # until the tests are collected: what that makes stays

# A shell starts background jobs with SIGINT ignored, and nohup SIGHUP; a run that inherits that
# keeps it, and these tests send runs both.
for _signum, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _handler)

# Tensors on the meta device have no numbers; to draw them took half of the time of building there.
_draw = timm.layers.weight_init._trunc_normal_
timm.layers.weight_init._trunc_normal_ = lambda weight, *options: (
    weight if weight.is_meta else _draw(weight, *options)
)

REPO = Path(__file__).resolve().parents[1]
GOLDEN = REPO / 'tests' / 'parity' / 'golden'


def pytest_collection_finish() -> None:
    """Garbage is what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope='session')
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope='session')
def golden() -> Callable[[str], dict]:
    """Loader of a recorded parity file by name, without suffix."""

    def load(name: str) -> dict:
        return torch.load(GOLDEN / f'{name}.pt', weights_only=True)

    return load


@pytest.fixture(scope='session', autouse=True)
def _format_configs_once() -> None:
    """mmengine formats a run's config several times, at the cost of several training steps each."""
    if 'mmengine' in sys.modules:
        from yapf.yapflib import yapf_api

        format_code, formatted = yapf_api.FormatCode, {}

        def format_once(text: str, **options: object) -> tuple[str, bool]:
            key = text, str(options)
            if key not in formatted:
                formatted[key] = format_code(text, **options)
            return formatted[key]

        yapf_api.FormatCode = format_once


@pytest.fixture(scope='module', autouse=True)
def _freeze_what_is_imported() -> None:
    """mmengine collects garbage for every data set; a million objects of modules are none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _reset_default_scope() -> Iterator[None]:
    """A default scope of mmengine ends with the test, or the fixture of a module, that sets it.

    Tests run in any order.
    """

    def clear() -> None:
        if manager := getattr(sys.modules.get('mmengine.registry'), 'DefaultScope', None):
            manager._instance_dict.clear()

    clear()
    yield
    clear()


@pytest.fixture
def tiny_size() -> dict:
    """Arguments of :func:`mmvars.networks.create_model` for a network that runs in milliseconds."""
    return dict(embed_dim=48, depth=3, num_heads=3, patch_size=16, img_size=64)


@pytest.fixture
def tiny_arch() -> dict:
    """The same size as an adapter's ``arch``."""
    return dict(embed_dims=48, num_layers=3, num_heads=3, patch_size=16)
