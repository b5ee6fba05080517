"""Every backbone compiled to one graph for all sizes; autocast, channels_last, CUDA graphs.

``fullgraph=True`` makes a graph break an error, ``mark_dynamic`` a size that becomes a constant.
"""

import shutil
from collections.abc import Callable

import pytest
import tiny_timm  # noqa: F401  registers its networks
import torch
from torch import nn

from mmvars.layers import MIXERS, GridResizeMixin, TokenGrid, build_mixer
from mmvars.models import FAN, RVT, VARS, AbSViT, GFNet, ViT
from mmvars.models.base import Backbone
from mmvars.networks import TOP_DOWN_DESIGNS, Feedback
from mmvars.registry import MODELS

ARCH = dict(embed_dims=24, num_layers=1, num_heads=2)
TWO = ARCH | dict(num_layers=2)
STAGES = dict(embed_dims=[12, 24], num_layers=[1, 1], num_heads=[2, 2])
COMMON = dict(img_size=64)
# Before torch 2.7 every condition on a size makes graphs, and none is exported for free sizes.
NEW_TORCH = hasattr(torch.compiler, 'is_exporting')


def _vars(trunk: str, mixer: str, preset: str = 'release') -> Callable[[], nn.Module]:
    arch = STAGES if trunk == 'rvt' else ARCH
    mixer_cfg = None if mixer == 'performer' else dict(preset=preset)
    return lambda: VARS(dict(arch, trunk=trunk), mixer, mixer_cfg, **COMMON)


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    'vit': lambda: ViT(ARCH, **COMMON),
    'vit-prompts': lambda: ViT(TWO, transfer='prompt', prompt_cfg=dict(num_tokens=2), **COMMON),
    **{
        design: lambda design=design: AbSViT(TWO, design=design, **COMMON)
        for design in TOP_DOWN_DESIGNS
    },
    'absvit-3-passes': lambda: AbSViT(TWO, num_passes=3, **COMMON),
    'absvit-rvt': lambda: AbSViT(STAGES | dict(trunk='rvt'), **COMMON),
    'absvit-fan': lambda: AbSViT(TWO | dict(trunk='fan'), **COMMON),
    **{
        f'absvit-timm-{name}': lambda name=name: AbSViT(f'timm/tiny_{name}', **COMMON)
        for name in ('dinov2_reg', 'eva02', 'beit')
    },
    'absvit-vars_sd': lambda: AbSViT(TWO | dict(trunk='deit_convstem'), mixer='vars_sd', **COMMON),
    **{
        f'{trunk}-{mixer}': _vars(trunk, mixer)
        for trunk in ('rvt', 'deit_convstem', 'gfnet')
        for mixer in ('performer', 'vars_s', 'vars_d', 'vars_sd')
    },
    **{
        f'{trunk}-{mixer}-thesis': _vars(trunk, mixer, 'thesis')
        for trunk, mixer in (('rvt', 'vars_s'), ('deit_convstem', 'vars_d'), ('gfnet', 'vars_sd'))
    },
    'rvt': lambda: RVT(STAGES, **COMMON),
    'rvt-plus': lambda: RVT('tiny_plus', **COMMON),
    'gfnet': lambda: GFNet(ARCH, **COMMON),
    'gfnet-convstem': lambda: VARS(dict(ARCH, trunk='gfnet_convstem'), None, **COMMON),
    'fan': lambda: FAN(ARCH, **COMMON),
    'fan-hybrid': lambda: FAN('tiny_hybrid', **COMMON),
}
OWN_GRAPH = {name for name in BACKBONES if 'vars_s' in name.split('-')} | {'gfnet-vars_sd-thesis'}
"""Those whose filters have one graph for the grid they were made for, and one for all others."""


def build(name: str) -> nn.Module:
    """A backbone with weights that leave no branch without effect, in eval mode."""
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            if 'feedback.' in key or (parameter.ndim == 1 and not parameter.any()):
                parameter.normal_(0, 0.1)
    return backbone.eval()


class CountingCompiler:
    """``torch.compile`` without graph breaks that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.num_graphs = 0

    def __call__(self, module: nn.Module | Callable) -> Callable:
        return torch.compile(module, backend=self._count, fullgraph=True)

    def _count(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.num_graphs += 1
        return graph.forward


@pytest.fixture
def compiler() -> CountingCompiler:
    return CountingCompiler()


def images_of_any_size(batch: int, height: int, width: int) -> torch.Tensor:
    """Images whose batch, height and width may not become constants of a graph."""
    images = torch.randn(batch, 3, height, width)
    for axis in (0, 2, 3):
        torch._dynamo.mark_dynamic(images, axis)
    return images


CHEAP = {'absvit'}
SIZES = [(2, 80, 48), (3, 64, 64), (4, 97, 70)]  # a batch of one always has a graph of its own


def cases(cheap: set[str] = CHEAP) -> list:
    return [
        pytest.param(name, marks=() if name in cheap else pytest.mark.slow) for name in BACKBONES
    ]


def test_every_registered_backbone_is_here() -> None:
    registered = {
        cls
        for cls in MODELS.module_dict.values()
        if isinstance(cls, type) and issubclass(cls, Backbone)
    }
    assert len(registered) >= 6
    assert registered <= {type(make()) for make in BACKBONES.values()}


@pytest.mark.parametrize('name', cases())
@torch.no_grad()
def test_one_graph_for_all_sizes(name, compiler) -> None:
    backbone = build(name)
    run = compiler(backbone)  # what is marked dynamic may not be the size with its own graph
    sizes = [size for size in SIZES if name not in OWN_GRAPH or size[1:] != (64, 64)]
    for size in sizes:
        images = images_of_any_size(*size)
        for output, expected in zip(run(images), backbone(images), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert compiler.num_graphs == 1 or not NEW_TORCH
    assert not torch._dynamo.utils.counters['graph_break']


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(OWN_GRAPH))
@torch.no_grad()
def test_filters_have_a_second_graph_for_their_own_grid(name, compiler) -> None:
    backbone = build(name)
    run = compiler(backbone)
    for size in SIZES:
        images = torch.randn(size[0], 3, *size[1:])
        for axis in (0, 2, 3):
            torch._dynamo.maybe_mark_dynamic(images, axis)
        for output, expected in zip(run(images), backbone(images), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert compiler.num_graphs == 2


@pytest.mark.parametrize('name', cases({'absvit'}))
def test_a_training_step_is_one_graph_too(name, compiler) -> None:
    """Losses and gradients of two sizes are those of eager; stochastic depth is left out."""
    backbone = build(name).train()
    if isinstance(getattr(backbone.network, 'feedback', None), Feedback):
        backbone.reconstruction_loss_weight = 0.1
    run = compiler(backbone)
    for size in ((2, 80, 48), (3, 64, 96)):
        images, losses = images_of_any_size(*size), []
        for forward in (run, backbone):
            state = {key: value.clone() for key, value in backbone.state_dict().items()}
            backbone.zero_grad()
            output = forward(images, return_losses=True)
            loss = sum(part.square().mean() for part in output.feats)
            for part in output.losses.values():
                loss = loss + part
            loss.backward()
            losses.append(
                [loss.detach(), *(p.grad for p in backbone.parameters() if p.grad is not None)]
            )
            backbone.load_state_dict(state)  # batch statistics
        assert len(losses[0]) == len(losses[1]) > 2
        for output, expected in zip(*losses, strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-5)
    assert compiler.num_graphs == 1 or not NEW_TORCH


@torch.no_grad()
def test_priors_and_scales_of_a_call(compiler) -> None:
    """Class ids are not read in a graph, so the forward needs nothing of the device."""
    backbone = AbSViT(
        dict(embed_dims=24, num_layers=1, num_heads=2),
        img_size=64,
        prior=dict(type='class_prototype', num_classes=5),
    ).eval()
    backbone.network.prior.prototypes.normal_()
    run = compiler(backbone)
    for batch, height, width in SIZES[:2]:
        images = images_of_any_size(batch, height, width)
        prior, alpha = torch.randint(0, 5, (batch,)), torch.rand(batch)
        torch._dynamo.mark_dynamic(prior, 0)
        torch._dynamo.mark_dynamic(alpha, 0)
        (output,) = run(images, prior=prior, alpha=alpha)
        (expected,) = backbone(images, prior=prior, alpha=alpha)
        torch.testing.assert_close(output, expected)
    assert compiler.num_graphs == 1 or not NEW_TORCH
    for wrong in (5, -2):
        with pytest.raises((IndexError, RuntimeError), match='out of range'):
            run(images, prior=torch.full((3,), wrong), alpha=torch.rand(3))


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=[pytest.mark.slow] * (name == 'vars_s')) for name in sorted(MIXERS)],
)
@pytest.mark.skipif(not NEW_TORCH, reason='torch before 2.7 does not export for free sizes')
@torch.no_grad()
def test_every_mixer_is_exported_for_any_batch(name) -> None:
    """Cheap, and sees what ``torch.compile`` does not: ``len(tensor)`` is a constant here."""
    mixer = build_mixer(name, 16, 2, (3, 4)).eval()

    class AtOtherGrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = mixer

        def forward(self, x, top_down=None):
            return self.mixer(x, TokenGrid(4, 5), top_down)

    inputs = [torch.randn(3, 20, 16) for _ in range(1 + mixer.takes_top_down)]
    free = ({0: torch.export.Dim.DYNAMIC},) * len(inputs)
    program = torch.export.export(
        AtOtherGrid(), tuple(part[:2] for part in inputs), dynamic_shapes=free, strict=False
    ).module()
    torch.testing.assert_close(program(*inputs), AtOtherGrid()(*inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_these_tests_would_see_a_break_and_a_constant() -> None:
    class Breaks(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    class Binds(nn.Module):
        def forward(self, x):
            return x.expand(int(len(x)), -1, -1, -1) if x.shape[2] == 80 else x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        CountingCompiler()(Breaks())(torch.ones(2))
    with pytest.raises(Exception, match='specialized|Constraints violated'):
        CountingCompiler()(Binds())(images_of_any_size(2, 80, 48))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='inductor needs a C++ compiler on CPU')
@pytest.mark.parametrize('name', ['vit', 'absvit', 'deit_convstem-vars_sd', 'gfnet', 'rvt', 'fan'])
@torch.no_grad()
def test_generated_code_gives_the_same(name) -> None:
    torch._dynamo.reset()
    backbone = build(name)
    run = torch.compile(backbone, fullgraph=True)
    for size in SIZES[:2]:
        images = images_of_any_size(*size)
        for output, expected in zip(run(images), backbone(images), strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', sorted(BACKBONES))
@torch.no_grad()
def test_autocast_stays_near_float32(name, dtype) -> None:
    backbone = build(name)
    images = torch.randn(2, 3, 64, 80)
    with torch.autocast('cpu', dtype):
        halves = backbone(images)
    for output, expected in zip(halves, backbone(images), strict=True):
        assert output.isfinite().all()
        error = (output.float() - expected).norm() / expected.norm()
        assert error < (0.1 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize('name', sorted(BACKBONES))
@torch.no_grad()
def test_either_memory_format_gives_the_same_maps(name) -> None:
    """All is built contiguous, and so are the maps; what belongs to a grid is left as it is."""
    backbone, images = build(name), torch.randn(2, 3, 64, 80)
    assert all(tensor.is_contiguous() for tensor in backbone.state_dict().values())
    expected = backbone(images)
    assert all(feature.is_contiguous() for feature in expected)
    outputs = [backbone(images.to(memory_format=torch.channels_last))]
    backbone.to(memory_format=torch.channels_last)
    of_grids = [
        getattr(m, tensor)
        for m in backbone.modules()
        if isinstance(m, GridResizeMixin)
        for tensor in m.grid_tensors
        if hasattr(m, tensor)
    ]
    assert all(tensor.is_contiguous() for tensor in of_grids)
    outputs += [backbone(images), backbone(images.to(memory_format=torch.channels_last))]
    for output in outputs:
        for a, b in zip(output, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('name', sorted(BACKBONES))
@torch.no_grad()
def test_cuda_graphs(name) -> None:
    """The eager forward can be recorded, so it never waits for the device; replays are right."""
    backbone = build(name).cuda()
    static = torch.randn(2, 3, 80, 48, device='cuda')
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            backbone(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = backbone(static)
    images = torch.randn_like(static)
    static.copy_(images)
    graph.replay()
    for a, b in zip(recorded, backbone(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@torch.no_grad()
def test_cuda_graphs_of_compiled_code() -> None:
    backbone: ViT = build('absvit').cuda()
    run = torch.compile(backbone, fullgraph=True, mode='reduce-overhead')
    for _ in range(3):
        images = torch.randn(2, 3, 80, 48, device='cuda')
        with torch.autocast('cuda', torch.bfloat16):
            torch.testing.assert_close(
                run(images)[0].clone(), backbone(images)[0], rtol=5e-2, atol=5e-2
            )
