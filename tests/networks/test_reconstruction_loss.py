"""The reconstruction loss and its options (Eq. 2.12 and 2.13), worked by hand."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.networks import Feedback, create_model

DECODED = 'feedback.decoders.{}.to_below.weight'


def feedback(**options) -> Feedback:
    """One block, whose decoder hands on twice what it gets."""
    module = Feedback([2], [16], **options)
    torch.nn.init.eye_(module.decoders[0].to_below.weight).data.mul_(2)
    return module


def network(mixer: str | None = None, **options):
    torch.manual_seed(0)
    sizes = dict(embed_dim=(12, 24), depth=(2, 1), num_heads=(2, 4), img_size=32, num_classes=3)
    return create_model('rvt_tiny', top_down='absvit', mixer=mixer, **sizes, **options)


def trained(module) -> set[str]:
    images = torch.randn(2, 3, 32, 32)
    module(images, reconstruction=True).reconstruction.sum().backward()
    return {
        name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum()
    }


def test_squared_error_and_cosine_by_hand():
    block_input = torch.tensor([[[3.0, 0.0], [0.0, -1.0]]])
    output = torch.tensor([[[1.0, 1.0], [0.0, 5.0]]])  # decoded to (2, 2) and (0, 10)
    squares = feedback().reconstruction_errors([(block_input, output)])
    assert squares.tolist() == pytest.approx([(1 + 4 + 0 + 121) / 4])
    cosines = feedback(reconstruction_loss='cosine').reconstruction_errors([(block_input, output)])
    assert cosines.tolist() == pytest.approx([((1 - 0.5**0.5) + (1 + 1)) / 2])


@pytest.mark.parametrize('loss', ['l2', 'cosine'])
def test_without_stop_gradient_it_reaches_input_and_output(loss):
    for stop_gradient in (True, False):
        module = feedback(reconstruction_loss=loss, stop_gradient=stop_gradient)
        block_io = torch.randn(2, 1, 3, 2, requires_grad=True)
        module.reconstruction_errors([(block_io[0], block_io[1])]).sum().backward()
        assert module.decoders[0].to_below.weight.grad.abs().sum() > 0
        if stop_gradient:
            assert block_io.grad is None
        else:
            assert (block_io.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_the_trade_off_is_one_flag():
    """The errors are the same; what they train is the decoders, or the encoder as well."""
    images = torch.randn(2, 3, 32, 32)
    plain, generative = network().eval(), network(stop_gradient=False).eval()
    errors = [module(images, reconstruction=True).reconstruction for module in (plain, generative)]
    assert torch.equal(*errors)
    assert trained(plain) == {DECODED.format(i) for i in range(3)}
    assert trained(generative) >= {
        *(DECODED.format(i) for i in range(3)),
        'feedback.decoders.2.to_value.weight',
        'prior.query',
        'trunk.patch_embed.proj.0.weight',
    }


@pytest.mark.parametrize(
    ('mixer', 'preset'),
    [('vars_d', 'release'), ('vars_sd', 'release'), ('vars_sd', 'thesis'), ('vars_s', 'thesis')],
)
def test_the_sparsity_of_codes_is_that_of_eq_2_12(mixer, preset):
    """``1/2 sum squares + lambda |u|_1``, over half the number of elements."""
    options = dict(mixer_cfg=dict(preset=preset))
    plain, sparse = network(mixer, **options), network(mixer, code_sparsity=0.25, **options)
    images, seen = torch.randn(2, 3, 32, 32), []
    for block in sparse.trunk.blocks:
        block.register_forward_hook(lambda block, args, _: seen.append((block, *args)))
    with torch.no_grad():
        expected = plain.eval()(images, reconstruction=True).reconstruction
        actual = sparse.eval()(images, reconstruction=True).reconstruction
        for index, (block, x, grid, top_down, _) in enumerate(seen[3:]):  # the second pass
            assert isinstance(grid, TokenGrid) and top_down is not None
            code = block.attn.trace(block.norm1(x), grid, top_down).codes[-1]
            half_squares = expected[index] * x.numel() / 2
            energy = half_squares + 0.25 * code.abs().sum()
            torch.testing.assert_close(actual[index], energy / (x.numel() / 2))
    assert (actual > expected).all()
    assert 'trunk.patch_embed.proj.0.weight' in trained(sparse)
    assert 'trunk.patch_embed.proj.0.weight' not in trained(plain)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(reconstruction_loss='l1'), 'reconstruction_loss must be one of l2, cosine'),
        (dict(stop_gradient='no'), 'stop_gradient must be True or False'),
        (dict(mixer='vars_d', code_sparsity=-1), 'code_sparsity must be'),
        (dict(code_sparsity=0.1), 'block 0 mixes tokens with SelfAttention, which has none'),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InputError, match=message):
        network(**options)


@pytest.mark.parametrize(
    'option', [dict(reconstruction_loss='cosine'), dict(stop_gradient=False), dict(code_sparsity=1)]
)
@pytest.mark.parametrize('top_down', [None, 'mask_attention', 'perceiver_io'])
def test_designs_without_decoders_have_no_use_for_them(top_down, option):
    with pytest.raises(InputError, match=f'{next(iter(option))}=.* is for feedback through'):
        create_model('vit_tiny', top_down=top_down, **option)
