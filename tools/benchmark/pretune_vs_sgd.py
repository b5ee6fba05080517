"""Pre-tuning by regression against AdamW on the same loss, in the same time, on the same images.

The regression is `mmvars pretune`: one pass. AdamW minimizes `Feedback.reconstruction_errors`, the
gradient form of the loss, over as many passes as fit into the same time, in batches of the same
images, with a learning rate that falls to zero with the time. Its contenders (learning rates,
starts) share the forward of the frozen trunk, which is on the clock of each. Loading is on no
clock. Both sides are judged by the same sums over the same held-out images.

    python tools/benchmark/pretune_vs_sgd.py CONFIG --images FOLDER --size 224
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.utils.data import DataLoader

from mmvars.cli import run_tool
from mmvars.datasets.files import images_in
from mmvars.engine.cpu import pick_device
from mmvars.engine.options import parse_cfg_options
from mmvars.engine.runner import load_config
from mmvars.networks import DecoderRegression, Feedback
from mmvars.parsers.common import CONFIG_HELP, Parser, add_cfg_options, image_size
from mmvars.pretune import ImageFolder, Normalize, default_size, load_backbone, with_float64

CLOCKS: dict[str, Callable[[], float]] = dict(process=time.process_time, wall=time.perf_counter)


class Contender:
    """Decoders that AdamW trains, and their time.

    Args:
        start: ``'random'``, as a network is built; or ``'identity'``.
    """

    def __init__(self, network: Any, start: str, lr: float) -> None:
        self.name, self.lr, self.seconds, self.steps = f'{start}, lr {lr:g}', lr, 0.0, 0
        self.feedback = Feedback(network.trunk.widths, network.trunk.strides)
        self.feedback.to(next(network.parameters()).device)
        self.weights = [decoder.to_below.weight for decoder in self.feedback.decoders]
        if start == 'identity':
            for weight in self.weights:
                torch.nn.init.eye_(weight)
        self.optimizer = torch.optim.AdamW(self.weights, lr, weight_decay=0.0)

    def step(self, block_io: Any, budget: float) -> None:
        for group in self.optimizer.param_groups:
            group['lr'] = self.lr * max(1 - self.seconds / budget, 0)
        self.optimizer.zero_grad()
        self.feedback.reconstruction_errors(block_io).sum().backward()
        self.optimizer.step()
        self.steps += 1


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=(__doc__ or '').partition('\n')[0])
    add = parser.add_argument
    add('config', help=CONFIG_HELP)
    add('--images', required=True, metavar='FOLDER')
    add('--size', type=image_size, metavar='N|HxW', help='as for mmvars pretune')
    add('--batch-size', type=int, default=8)
    add('--lr', type=float, nargs='+', default=[1e-3, 1e-2])
    add('--start', nargs='+', choices=('random', 'identity'), default=['random', 'identity'])
    add('--clock', choices=CLOCKS, default='process', help='process: CPU time, for busy machines')
    add('--budget', type=float, default=1.0, help="AdamW's time over that of the regression")
    add('--device')
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    cfg, _ = load_config(args.config, parse_cfg_options(args.cfg_options))
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    device = pick_device(args.device)
    torch.manual_seed(0)
    backbone = load_backbone(cfg, Path('none')).to(device).eval()
    normalize = Normalize(cfg).to(device)
    folder = ImageFolder(images_in(args.images), args.images, args.size or default_size(cfg))
    network = backbone.network
    print(f'{backbone.trunk.name}, {folder}, batches of {args.batch_size}, on {device}')

    def clock() -> float:
        if device.type == 'cuda':
            torch.cuda.synchronize()
        return CLOCKS[args.clock]()

    def batches(shuffle: bool) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader = DataLoader(folder, args.batch_size, shuffle, num_workers=2)
        for pixels, is_held_out in loader:
            yield normalize(pixels.to(device)), is_held_out

    regression = DecoderRegression(network).to(with_float64(device))
    seconds = 0.0
    for images, is_held_out in batches(shuffle=False):
        start = clock()
        regression.add(images, is_held_out)
        seconds += clock() - start
    start = clock()
    fits = regression.solve()
    seconds += clock() - start
    mean = sum(fit.error for fit in fits) / len(fits)
    print(f'regression: one pass in {seconds:.0f} s, mean error {mean:.4f}', flush=True)

    budget = args.budget * seconds
    contenders = [Contender(network, start, lr) for start in args.start for lr in args.lr]
    passes = 0
    while any(each.seconds < budget for each in contenders):
        passes += 1
        for images, is_held_out in batches(shuffle=True):
            if all(each.seconds >= budget for each in contenders):
                break
            start = clock()
            with torch.no_grad():
                tokens, grid = network.trunk.forward_embed(images[~is_held_out.to(device)])
                output = network.trunk.forward_blocks(tokens, grid, keep_block_io=True)
            forward = clock() - start
            for each in contenders:
                if each.seconds < budget:
                    start = clock()
                    each.step(output.block_io, budget)
                    each.seconds += forward + clock() - start
        print(f'AdamW: {passes} {"pass" if passes == 1 else "passes"}', flush=True)

    columns = {'regression': [fit.error for fit in fits]} | {
        each.name: [
            sums.error(weight.detach().T.double().cpu())
            for sums, weight in zip(regression.held_out, each.weights, strict=True)
        ]
        for each in contenders
    }
    print('held-out reconstruction error, relative to the variance of the input of the block:')
    print(f'{"block":>5} ' + ' '.join(f'{name:>18}' for name in columns))
    rows = [*zip(*columns.values(), strict=True)]
    for index, row in enumerate(rows):
        print(f'{index:>5} ' + ' '.join(f'{error:18.4f}' for error in row))
    means = [sum(column) / len(column) for column in columns.values()]
    print(f'{"mean":>5} ' + ' '.join(f'{mean:18.4f}' for mean in means))
    steps = ['1 pass', *(f'{each.steps} steps' for each in contenders)]
    print(f'{"":>5} ' + ' '.join(f'{each:>18}' for each in steps))
    times = [seconds, *(each.seconds for each in contenders)]
    print(f'{"s":>5} ' + ' '.join(f'{each:18.0f}' for each in times))
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main))
