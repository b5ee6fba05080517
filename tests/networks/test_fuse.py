"""fuse(): products of weights give the same outputs, and do not outlive the weights."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils import parametrize, prune

from mmvars.errors import InputError
from mmvars.layers import Fusible
from mmvars.networks import create_model

SMALL = dict(num_classes=5, img_size=64)
TRUNKS = {
    'vit_tiny_patch16': dict(embed_dim=48, depth=3, num_heads=3),
    'vit_tiny_patch8_gap': dict(embed_dim=48, depth=3, num_heads=3, patch_size=16),
    'deit_convstem_tiny': dict(embed_dim=48, depth=3, num_heads=3),
    'rvt_tiny': dict(embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4)),
    'fan_tiny': dict(embed_dim=64, depth=2, num_heads=4),
}
DESIGNS = ('absvit', 'absvit_qkv', 'feedback', 'mask_attention')
MIXERS = ('vars_d', 'vars_sd', 'vars_s', 'performer')
CASES = [
    *((name, None, design) for name in TRUNKS for design in DESIGNS),
    *((name, mixer, 'absvit') for name in ('deit_convstem_tiny', 'rvt_tiny') for mixer in MIXERS),
]


def small(name='vit_tiny_patch16', **arguments):
    network = create_model(name, **TRUNKS[name] | SMALL | dict(top_down='absvit') | arguments)
    if getattr(network, 'prior', None) is not None:  # one that most tokens have a part of
        with torch.no_grad():
            tokens = network.eval().trunk(torch.randn(4, 3, 64, 64)).tokens
            network.prior.query.copy_(tokens[:, 1:].mean(dim=(0, 1)))
    return network.eval()


def outputs(network, images: Tensor) -> list[Tensor]:
    output = network(images, out_indices=(0, 1))
    return [
        *output.second.intermediates,
        output.second.tokens,
        output.first.tokens,
        network.forward_head(output.second),
        *output.top_down,
    ]


def assert_close(results, expected, tolerance: float) -> None:
    assert len(results) == len(expected)
    for a, b in zip(results, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def is_fused(network) -> bool:
    states = {module.is_fused for module in network.modules() if isinstance(module, Fusible)}
    assert len(states) == 1
    return states.pop()


@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
@pytest.mark.parametrize(('name', 'mixer', 'design'), CASES)
@torch.no_grad()
def test_same_outputs_as_the_equations_step_by_step(name, mixer, design, size):
    network = small(name, mixer=mixer, top_down=design).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = outputs(network, images)
    assert all(tensor.abs().max() > 0 for tensor in expected)
    assert network.fuse() is network
    assert_close(outputs(network, images), expected, 1e-12)
    network.unfuse()
    assert all(map(torch.equal, outputs(network, images), expected))


@pytest.mark.parametrize('name', TRUNKS)
@torch.no_grad()
def test_same_outputs_in_single_precision(name):
    network, images = small(name), torch.randn(1, 3, 50, 100)
    expected = outputs(network, images)
    assert_close(outputs(network.fuse(), images), expected, 1e-5)


@torch.no_grad()
def test_half_precision_stays_as_close_as_step_by_step():
    network, images = small(), torch.randn(2, 3, 64, 64)
    exact = outputs(network, images)
    for dtype, tolerance in ((torch.bfloat16, 5e-2), (torch.float16, 5e-3)):
        low = copy.deepcopy(network).to(dtype)
        for module, x in ((network.fuse(), images), (low.fuse(), images.to(dtype))):
            with torch.autocast('cpu', dtype, enabled=module is network):
                assert_close([t.float() for t in outputs(module, x)], exact, tolerance)
        network.unfuse()


@torch.no_grad()
def test_the_products_are_really_used():
    """One product a block in place of two; the products themselves, not the weights."""
    network, images = small().fuse(), torch.randn(1, 3, 64, 64)
    layers = set(network.feedback.decoders.modules())
    called = []
    handle = register_module_forward_pre_hook(
        lambda module, _: called.append(module) if module in layers else None
    )
    before = network(images).top_down
    network.feedback.fused['value_1'].mul_(2)
    after = network(images).top_down
    handle.remove()
    assert not called
    assert torch.equal(after[2], before[2]) and torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], 2 * before[1])


def test_products_are_in_no_state_dict_and_no_parameter():
    network = small('rvt_tiny')
    keys, parameters = list(network.state_dict()), list(network.parameters())
    buffers = list(network.buffers())  # what mmengine's averaged models are compared with
    network.fuse()
    assert list(network.state_dict()) == keys
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(network.buffers(), buffers, strict=True))
    assert set(network.feedback.fused) == {'value_0', 'value_1', 'value_2', 'chain_2'}
    network.unfuse()
    assert not network.feedback.fused


class TestChangesAfterFuse:
    """After each way in which weights change: the right result, or an error that says fuse()."""

    @staticmethod
    def check(network, images):
        """The outputs are those of a copy that was never fused."""
        twin = copy.deepcopy(network).unfuse()
        with torch.no_grad():
            assert_close(outputs(network, images), outputs(twin, images), 1e-5)

    @staticmethod
    def check_error(network, images):
        with torch.no_grad(), pytest.raises(InputError, match=r'call fuse\(\) of the network'):
            network(images)
        network.fuse()
        TestChangesAfterFuse.check(network, images)
        network.feedback.decoders[0].to_value.weight.data += 1  # what cannot be noticed
        with torch.no_grad():
            network(images)
        network.unfuse()
        TestChangesAfterFuse.check(network, images)

    @pytest.fixture
    def fused(self):
        network, images = small(), torch.randn(1, 3, 64, 64)
        # Weights that torch counts no change of, as those of most loaded models.
        state = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(state, assign=True)
        network.fuse()
        self.check(network, images)
        assert is_fused(network)
        return network, images

    def test_training_mode_unfuses(self, fused):
        network, images = fused
        network.eval()
        assert is_fused(network)
        network.train()
        assert not is_fused(network)
        network.eval()
        assert not is_fused(network)
        self.check(network, images)

    @pytest.mark.parametrize('assign', [False, True])
    def test_loading_unfuses(self, fused, assign):
        network, images = fused
        state = {k: v + torch.randn_like(v) for k, v in network.state_dict().items()}
        network.load_state_dict(state, assign=assign)
        assert not is_fused(network)
        self.check(network, images)

    @pytest.mark.parametrize('assign', [False, True])
    def test_loading_into_one_decoder_is_noticed(self, fused, assign):
        network, images = fused
        decoder = network.feedback.decoders[1]
        decoder.load_state_dict({k: 2 * v for k, v in decoder.state_dict().items()}, assign=assign)
        self.check_error(network, images)

    @pytest.mark.parametrize(
        'make',
        [
            lambda parameters: torch.optim.SGD(parameters, 0.5),
            lambda parameters: torch.optim.AdamW(parameters, 0.1, foreach=True),
            lambda parameters: torch.optim.AdamW(parameters, 0.1, fused=True),
        ],
    )  # counts no version
    def test_an_optimizer_step_in_eval_mode_unfuses(self, fused, make):
        network, images = fused
        optimizer = make(network.parameters())
        network.forward_head(network(images).second).sum().backward()
        assert not is_fused(network)
        optimizer.step()
        self.check(network, images)

    @pytest.mark.parametrize(
        'change',
        [
            lambda d: d.to_below.weight.mul_(2),
            lambda d: d.to_value.weight[-1, 7].add_(100),
            lambda d: setattr(d.to_below, 'weight', nn.Parameter(torch.randn(48, 48))),
            lambda d: setattr(d, 'to_value', nn.Linear(48, 48, bias=False)),
            lambda d: nn.utils.vector_to_parameters(torch.randn(2 * 48**2), d.parameters()),
        ],
    )
    @torch.no_grad()
    def test_other_weights_are_noticed(self, fused, change):
        network, images = fused
        change(network.feedback.decoders[1])
        with pytest.raises(InputError, match=r'call fuse\(\)'):
            network(images)

    @pytest.mark.parametrize('move', [lambda n: n.to('cpu'), lambda n: n.float()])
    def test_a_move_does_not_hide_a_change(self, fused, move):
        network, images = fused
        with torch.no_grad():
            network.feedback.decoders[1].to_value.weight.mul_(2)
        move(network)
        self.check(network, images)

    @pytest.mark.parametrize(
        'change',
        [
            lambda d: setattr(d, 'to_value', nn.Sequential(d.to_value, nn.Linear(48, 48))),
            lambda d: d.to_value.register_forward_hook(lambda module, args, out: 2 * out),
            lambda d: d.register_forward_hook(lambda module, args, out: (out[0], 2 * out[1])),
            lambda d: prune.random_unstructured(d.to_below, 'weight', 0.5),
        ],
    )
    @torch.no_grad()
    def test_layers_that_are_wrapped_hooked_or_pruned_are_called(self, fused, change):
        network, images = fused
        before = network(images).top_down[1]
        change(network.feedback.decoders[1])
        assert not torch.allclose(network(images).top_down[1], before)
        self.check(network, images)
        assert not is_fused(network.fuse())
        self.check(network, images)

    def test_other_weights_by_a_functional_call(self, fused):
        network, images = fused
        other = {k: v + torch.randn_like(v) for k, v in network.state_dict().items()}
        with torch.no_grad():
            result = torch.func.functional_call(network, other, images).second.tokens
            twin = small()
            twin.load_state_dict(other)
            torch.testing.assert_close(result, twin(images).second.tokens)
        self.check(network, images)  # its own weights are back
        assert is_fused(network)

    def test_a_weight_that_no_product_depends_on_may_change(self):
        network, images = small('rvt_tiny', mixer='vars_sd').fuse(), torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            network.trunk.blocks[0].attn.proj.bias.add_(1)
        assert network.trunk.blocks[0].attn.is_fused
        self.check(network, images)

    @pytest.mark.parametrize('name', ['vit_tiny_patch16', 'rvt_tiny'])
    def test_recorded_gradients_are_those_of_the_weights(self, name):
        network, images = small(name).double(), torch.randn(2, 3, 64, 64).double()
        gradients = []
        for fuse in (False, True):
            network.zero_grad(set_to_none=True)
            network.fuse() if fuse else network.unfuse()
            output = network(images, reconstruction=True)
            loss = network.forward_head(output.second).square().sum()
            (loss + output.reconstruction.sum()).backward()
            gradients.append([p.grad for p in network.parameters()])
        assert not is_fused(network)
        for name, parameter in network.named_parameters():
            assert parameter.grad.abs().max() > 0, name
        assert all(map(torch.equal, *gradients))

    def test_gradients_of_the_images_pass_the_feedback(self, fused):
        network, images = fused
        gradients = []
        for _ in range(2):
            x = images.clone().requires_grad_()
            network(x).top_down[0].sum().backward()
            gradients.append(x.grad)
            network.unfuse()
        assert gradients[0].abs().max() > 0 and torch.equal(*gradients)

    @pytest.mark.parametrize(
        'move', [lambda n: n.double(), lambda n: n.half(), lambda n: n.to(torch.bfloat16).float()]
    )
    def test_precision(self, fused, move):
        network, images = fused
        move(network)
        assert is_fused(network)
        dtype = next(network.parameters()).dtype
        assert network.feedback.fused['value_0'].dtype == dtype
        twin = copy.deepcopy(network).unfuse().float()
        with torch.no_grad():
            results = [t.float() for t in outputs(network, images.to(dtype))]
            assert_close(results, outputs(twin, images), 5e-3 if dtype == torch.half else 1e-2)
        self.check(network.unfuse(), images.to(dtype))

    def test_the_meta_device_and_back(self, fused):
        network, images = fused
        state = network.state_dict()
        network.to('meta').to_empty(device='cpu').load_state_dict(state)
        assert not is_fused(network)
        self.check(network, images)

    def test_copies_live_their_own_lives(self, fused):
        network, images = fused
        twin = copy.deepcopy(network)
        assert not is_fused(twin) and is_fused(network)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2)
        self.check(twin, images)
        self.check(network, images)

    def test_a_file_with_the_whole_network(self, fused):
        network, images = fused
        buffer = io.BytesIO()
        torch.save(network, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
        assert not is_fused(twin)
        self.check(twin, images)

    def test_inference_mode(self):
        with torch.inference_mode():
            network, images = small().fuse(), torch.randn(1, 3, 64, 64)
            results = outputs(network, images)
            assert_close(results, outputs(network.unfuse(), images), 1e-5)

    @torch.no_grad()
    def test_a_weight_that_is_computed_from_a_buffer(self, fused):
        network, images = fused
        scale = nn.BatchNorm1d(1, affine=False)  # some module with a buffer
        scale.forward = lambda weight: weight * scale.running_var
        parametrize.register_parametrization(network.feedback.decoders[1].to_below, 'weight', scale)
        for factor in (2, 3):
            scale.running_var.fill_(factor)
            self.check(network.fuse(), images)


class LoRA(nn.Module):
    """A wrapped linear layer, as adapters of large models do it."""

    def __init__(self, linear: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


@pytest.mark.parametrize('name', ['vit_tiny_patch16', 'rvt_tiny', 'fan_tiny'])
@torch.no_grad()
def test_wrapped_decoders_are_called(name):
    network, images = small(name).double(), torch.randn(1, 3, 48, 80).double()
    unwrapped = outputs(network, images)
    for decoder in network.feedback.decoders:
        decoder.to_below, decoder.to_value = LoRA(decoder.to_below), LoRA(decoder.to_value)
    network.double()
    expected = outputs(network, images)
    assert not torch.allclose(expected[-1], unwrapped[-1])
    assert_close(outputs(network.fuse(), images), expected, 1e-12)
    assert not is_fused(network)


@pytest.mark.slow
@torch.no_grad()
def test_a_fused_network_compiles():
    network, images = small().fuse(), torch.randn(1, 3, 48, 80)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    run = torch.compile(network, backend=backend, fullgraph=True)
    torch.testing.assert_close(run(images).second.tokens, network(images).second.tokens)
    assert len(graphs) == 1
    network.load_state_dict({k: v + 0.1 for k, v in network.state_dict().items()})
    torch.testing.assert_close(run(images).second.tokens, network(images).second.tokens)
    assert len(graphs) == 2  # the one with the weights


@torch.no_grad()
def test_a_plain_trunk_and_perceiver_io_can_be_asked_too():
    for design in (None, 'perceiver_io'):
        network, images = small(top_down=design), torch.randn(1, 3, 64, 64)
        before = network.forward_head(network(images) if design is None else network(images).second)
        network.fuse()
        after = network.forward_head(network(images) if design is None else network(images).second)
        assert torch.equal(before, after)
        assert network.unfuse() is network


def test_after_a_test_nothing_stays_fused():
    """An EMA hook swaps weights back through ``.data``, behind the products' back."""
    pytest.importorskip('mmengine')
    from types import SimpleNamespace

    from mmvars.engine.hooks import FuseHook

    model = nn.Module()
    model.backbone = small().eval()
    runner = SimpleNamespace(model=model)
    FuseHook().before_test_epoch(runner)
    assert is_fused(model.backbone)
    FuseHook().after_test_epoch(runner)
    assert not is_fused(model.backbone)
