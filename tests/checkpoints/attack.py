"""All hostile and odd files through all that read checkpoints: ``python attack.py FOLDER [EVERY]``.

Trains a tiny model in FOLDER, makes the corpus of it, attacks every entry point in a process of its
own with one of EVERY so many files (default: all), prints counts and faults, and fails if there are
faults. What became of each file is written into ``FOLDER/ENTRY.json``.
"""

import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import corpus
from peak_memory import start_peak
from PIL import Image
from torch import Tensor, nn

from mmvars.errors import InputError

LIMIT = 2  # seconds more than a good file takes
MEMORY = 256 * 2**20  # bytes, or three times the file
HANGS = 20  # seconds
ENTRIES = ('read', 'convert', 'init_cfg', 'load_from', 'resume', 'test', 'visualize', 'export')
HARM = (
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.fork',
    'subprocess',
    'socket.connect',
    'shutil.rmtree',
)

CONFIG = """
default_scope = 'mmseg'
work_dir = {folder!r} + '/work'
randomness = dict(seed=0)
pipeline = [dict(type=name) for name in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
    dataset=dict(type='BaseSegDataset', data_root={folder!r} + '/data', pipeline=pipeline,
                 data_prefix=dict(img_path='images', seg_map_path='labels'), img_suffix='.png',
                 metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [9, 9, 9]])))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
                     constructor='mmvars.LayerDecayOptimWrapperConstructor',
                     paramwise_cfg=dict(layer_decay_rate=0.5))
param_scheduler = [dict(type='PolyLR', power=1., eta_min=1e-4, by_epoch=False, begin=0, end=6)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=9)
val_dataloader = val_cfg = val_evaluator = None
log_processor = dict(by_epoch=False)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
model = dict(
    type='mmvars.EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), seg_pad_val=255),
    backbone=dict(type='mmvars.AbSViT', arch=dict(embed_dims=16, num_layers=2, num_heads=2),
                  img_size=32),
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=0, channels=8, num_convs=1, concat_input=False,
        num_classes=2, dropout_ratio=0., norm_cfg=dict(type='GN', num_groups=4),
        loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
"""


def prepare(folder: Path) -> None:
    """A data set, a config and a training state of two iterations."""
    from mmvars.engine.train import main as train

    draw = np.random.default_rng(0)
    for index in range(2):
        for name, shape in (('images', (32, 32, 3)), ('labels', (32, 32))):
            (folder / 'data' / name).mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 2, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / 'data' / name / f'{index}.png')
    (folder / 'config.py').write_text(CONFIG.format(folder=str(folder)))
    train([str(folder / 'config.py')])


def runner_of(folder: Path) -> Any:
    """The Runner of a training that is ready to start."""
    from mmengine.registry import init_default_scope

    from mmvars.engine.runner import build_runner, load_config
    from mmvars.parsers.train import parse_args

    args = parse_args([str(folder / 'config.py')])
    cfg, notes = load_config(args.config)
    init_default_scope('mmseg')
    runner = build_runner(cfg, args, notes)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return runner


def entry_point(entry: str, folder: Path) -> tuple[Callable[[Path], Any], Any]:
    """What is done with a file, and the model that it may change."""
    from mmengine.config import Config

    config = folder / 'config.py'
    if entry == 'read':
        from mmvars.checkpoints import read_checkpoint

        return read_checkpoint, None
    if entry == 'convert':
        from mmvars.checkpoints.cli import main as convert

        sizes = '--arch absvit_small_patch16 --embed-dim 16 --depth 2 --num-heads 2'
        target = str(folder / 'converted.pth')
        return lambda path: convert([str(path), target, *sizes.split(), '--overwrite']), None
    if entry == 'init_cfg':
        import mmvars.models  # noqa: F401
        from mmvars.checkpoints import load_pretrained
        from mmvars.registry import MODELS

        backbone = MODELS.build(Config.fromfile(config).model.backbone)
        return lambda path: load_pretrained(backbone, path), backbone
    if entry in ('visualize', 'export'):
        from mmvars.visualization.model import build_model, read_config

        cfg, heads = read_config(str(config)), entry == 'visualize'
        return lambda path: build_model(cfg, str(path), torch.device('cpu'), heads), None
    runner = runner_of(folder)
    runner._training, runner._resume = entry != 'test', entry == 'resume'

    def resume(path: Path) -> None:
        runner.resume(str(path))
        for parameter in runner.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        runner.optim_wrapper.optimizer.step()
        for scheduler in runner.param_schedulers:
            scheduler.step()

    return resume if entry == 'resume' else lambda path: runner.load_checkpoint(str(path)), (
        runner.model
    )


def attack(entry: str, folder: Path, every: int) -> dict[str, str]:
    """What became of each file, or of one of ``every`` so many: accepted, refused, or a fault."""
    state = torch.load(folder / 'work' / 'iter_2.pth', weights_only=False)
    files = folder / f'files-{entry}'
    files.mkdir()
    paths = corpus(files, dict(state['state_dict']), state)
    call, model = entry_point(entry, folder)
    os.chdir(files)
    harm: list[str] = []
    sys.addaudithook(lambda event, _: harm.append(event) if event.startswith(HARM) else None)
    signal.signal(signal.SIGALRM, _stop)
    times, outcome = {}, {}
    gc.freeze()  # each measurement begins with a collection
    for name, path in [('warm-up', paths['good-training']), *list(paths.items())[::every]]:
        before = [] if model is None else _changed(model)
        growth, start = start_peak(), time.process_time()
        harm.clear()
        signal.alarm(HANGS)
        try:
            call(path)
            outcome[name] = 'accepted'
        except InputError as error:
            outcome[name] = f'refused: {error}'
            if model is not None and not _same(before, model.state_dict().values()):
                outcome[name] = f'half-loaded: {error}'
        except TimeoutError:
            outcome[name] = 'hung'
        except BaseException as error:  # noqa: BLE001  what a user would see as a traceback
            outcome[name] = f'traceback: {type(error).__name__}: {error}'
        signal.alarm(0)
        times[name] = time.process_time() - start
        grown = growth()
        size = path.stat().st_size if os.path.isfile(path) else 0
        if grown > max(MEMORY, 3 * size) and name != 'warm-up':
            outcome[name] = f'over memory: {grown >> 20} MiB'
        if name != 'warm-up' and times[name] > LIMIT + times['warm-up']:
            outcome[name] = f'slow: {times[name]:.1f} s'
        if harm or Path('executed').exists():
            outcome[name] = f'executed: {harm}'
            Path('executed').unlink(missing_ok=True)
    return outcome


def _changed(model: nn.Module) -> list[Tensor]:
    """Other values than those of the files, so that each tensor that is filled is seen."""
    for each in model.state_dict().values():
        each.copy_(each + 1 if each.is_floating_point() else each)
    return [each.clone() for each in model.state_dict().values()]


def _same(before: list, after: Any) -> bool:
    return all(map(torch.equal, before, after))


def _stop(*_: Any) -> None:
    raise TimeoutError


def main(argv: list[str]) -> int:
    folder, every = Path(argv[0]).resolve(), int(argv[1]) if len(argv) > 1 else 1
    folder.mkdir(parents=True, exist_ok=True)
    if len(argv) > 2:
        warnings.simplefilter('ignore')
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if argv[2] == 'prepare':
                prepare(folder)
            else:
                outcome = attack(argv[2], folder, every)
                (folder / f'{argv[2]}.json').write_text(json.dumps(outcome, indent=1))
        return 0
    faults = 0
    for entry in ('prepare', *ENTRIES):
        command = [sys.executable, __file__, str(folder), str(every), entry]
        subprocess.run(command, check=True)
        if entry == 'prepare':
            continue
        outcome = json.loads((folder / f'{entry}.json').read_text())
        counts = Counter(each.partition(':')[0] for each in outcome.values())
        print(f'{entry:10}', ', '.join(f'{count} {what}' for what, count in counts.items()))
        for name, what in outcome.items():
            if not what.startswith(('accepted', 'refused')):
                faults += 1
                print(f'    {name}: {what[:200]}')
    return min(faults, 1)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
