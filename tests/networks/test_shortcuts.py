"""Options that change the maths: each leaves out what it says, and nothing else."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import build_network, plain_path, token_mask

SIZE = dict(embed_dim=48, depth=4, num_heads=3, patch_size=16, img_size=64, num_classes=5)
RVT = dict(embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4), img_size=64, num_classes=5)


def twins(name='vit_tiny_patch16', size=SIZE, **shortcuts):
    exact = build_network(name, 'absvit', **size).double().eval()
    cheap = build_network(name, 'absvit', shortcuts=shortcuts, **size).double().eval()
    cheap.load_state_dict(exact.state_dict())
    return exact, cheap, torch.randn(2, 3, 64, 96, dtype=torch.float64)


def modulated(network, tokens):
    return token_mask(tokens, network.prior.own()) * tokens


@torch.no_grad()
def test_restart_runs_the_upper_blocks_alone():
    exact, cheap, images = twins(restart_block=2)
    output = cheap(images, out_indices=(0, 1, 2, 3))
    trunk = exact.trunk
    tokens, grid = trunk.embed(images)
    first = trunk.run(tokens, grid, out_indices=(0, 1, 2, 3))
    signals = exact.feedback(modulated(exact, first.tokens), torch.ones(2, 25, 1), [grid] * 4)
    x = first.intermediates[1]
    for index in (2, 3):
        x = trunk.blocks[index](x, grid, signals[index].decode())
        torch.testing.assert_close(output.final.intermediates[index], x, rtol=0, atol=1e-12)
    for index in (0, 1):  # what the first pass gave
        assert torch.equal(output.final.intermediates[index], first.intermediates[index])
    assert output.top_down_signals[:2] == (None, None)


@torch.no_grad()
@pytest.mark.parametrize('block', [1, 2])
def test_restart_at_a_stage_of_rvt(block):
    exact, cheap, images = twins('rvt_tiny', RVT, restart_block=block)
    output = cheap(images, out_indices=(0, 1, 2))
    assert [g[:2] for g in output.final.grids] == [(4, 6), (4, 6), (2, 3)]
    with plain_path():
        plain = cheap(images, out_indices=(0, 1, 2))
    for a, b in zip(output.final.intermediates, plain.final.intermediates, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert not torch.allclose(output.final.tokens, exact(images).final.tokens)


@torch.no_grad()
def test_first_pass_at_half_resolution():
    _, cheap, images = twins(first_pass_scale=.5)
    output = cheap(images)
    assert output.bottom_up.grid[:2] == (2, 3) and output.final.grid[:2] == (4, 6)
    assert output.token_mask.shape == (2, 25, 1)
    small = torch.nn.functional.interpolate(images, scale_factor=.5, mode='bilinear')
    alone = cheap(small, feedback=False).final
    assert torch.equal(output.bottom_up.tokens, alone.tokens)


@torch.no_grad()
def test_shared_queries_and_keys_are_those_of_the_first_pass():
    exact, cheap, images = twins(share_query_key=True)
    trunk = exact.trunk
    seen = []
    handles = [block.attn.register_forward_hook(lambda m, args, out: seen.append(args[0]))
               for block in trunk.blocks]
    tokens, grid = trunk.embed(images)
    first = trunk.run(tokens, grid)
    for handle in handles:
        handle.remove()
    signals = exact.feedback(modulated(exact, first.tokens), torch.ones(2, 25, 1), [grid] * 4)
    x = tokens
    for block, before, signal in zip(trunk.blocks, seen, signals, strict=True):
        attention = block.attn.attention_probabilities(before)
        weight, bias = block.attn.qkv.weight[96:], block.attn.qkv.bias[96:]
        value = (block.norm1(x) + signal.decode()) @ weight.t() + 2 * bias
        heads = value.unflatten(2, (3, 16)).transpose(1, 2)
        x = x + block.attn.proj((attention @ heads).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x), grid)
    torch.testing.assert_close(cheap(images).final.tokens, trunk.norm(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_low_rank_loads_a_full_one_by_its_largest_singular_values():
    exact, cheap, images = twins(feedback_rank=5)
    for full, low in zip(exact.feedback.decoders, cheap.feedback.decoders, strict=True):
        down, up = low.readout_weights
        assert down.shape == (5, 48) and up.shape == (48, 5)
        rest = torch.linalg.matrix_norm(full.readout.weight - up @ down, 2)
        assert rest == pytest.approx(torch.linalg.svdvals(full.readout.weight)[5].item(), rel=1e-4)
    _, almost_full, _ = twins(feedback_rank=48)
    almost_full.load_state_dict(exact.state_dict())
    torch.testing.assert_close(almost_full(images).final.tokens, exact(images).final.tokens,
                               rtol=1e-5, atol=1e-5)
    with plain_path():
        plain = cheap(images).final.tokens
    torch.testing.assert_close(cheap(images).final.tokens, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize('shortcuts', [dict(restart_block=2), dict(first_pass_scale=.5),
                                       dict(share_query_key=True), dict(feedback_rank=5)])
@pytest.mark.parametrize('checkpointing', [False, True])
def test_they_train(shortcuts, checkpointing):
    gradients = []
    for recompute in (False, checkpointing):
        torch.manual_seed(0)
        network = build_network('vit_tiny_patch16', 'absvit', shortcuts=shortcuts,
                                grad_checkpointing=recompute, **SIZE)
        output = network(torch.randn(2, 3, 64, 64), reconstruction=True)
        assert len(output.reconstruction) == 4 - shortcuts.get('restart_block', 0)
        (network.logits(output.final).sum() + output.reconstruction.sum()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    without = {name for name, grad in gradients[0].items() if grad is None or not grad.any()}
    assert without == {name for name in gradients[0] if shortcuts.get('restart_block') and
                       name.startswith(('feedback.decoders.0', 'feedback.decoders.1'))}
    for name, grad in gradients[0].items():
        if name not in without:
            torch.testing.assert_close(gradients[1][name], grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_wanted_blocks_below_the_restart_must_have_been_wanted_of_the_first_pass():
    _, cheap, images = twins(restart_block=2)
    whole = cheap(images, out_indices=(0, 3)).final.intermediates
    found = cheap.attend(cheap.look(images, (0, 3)), out_indices=(0, 3)).final.intermediates
    assert len(found) == 2 and all(map(torch.equal, found, whole))
    with pytest.raises(InputError, match='give look the same out_indices'):
        cheap.attend(cheap.look(images), out_indices=(0, 3))


@pytest.mark.parametrize('scale', [.2, 1e-9])
def test_a_first_pass_below_one_patch_is_refused(scale):
    _, cheap, images = twins(first_pass_scale=scale)
    with pytest.raises(InputError, match=f'first_pass_scale={scale:g} makes images of 64x96'):
        cheap(images)


@torch.no_grad()
def test_previous_output_stands_in_for_the_first_pass():
    network, _, images = twins()
    first = network(images)
    again = network.attend(network.look(images, previous=first.bottom_up))
    torch.testing.assert_close(again.final.tokens, first.final.tokens, rtol=0, atol=1e-12)
    later = network.attend(network.look(images[..., :64], previous=first.final))
    assert later.final.grid[:2] == (4, 4)
    with pytest.raises(InputError, match='previous must be an output for 1 images'):
        network.look(images[:1], previous=first.final)
    with pytest.raises(InputError, match='previous must be a TrunkOutput.*got Tensor'):
        network.look(images, previous=first.final.tokens)
    _, restarting, _ = twins(restart_block=1)
    with pytest.raises(InputError, match='restart_block'):
        restarting.look(images, previous=first.final)


@pytest.mark.parametrize('shortcuts, message', [
    (dict(restart_block=4), r'restart_block must be a whole number in \[0, 3\], got 4'),
    (dict(restart_block=-1), 'restart_block'),
    (dict(first_pass_scale=0), 'first_pass_scale must be above 0'),
    (dict(first_pass_scale=2), 'first_pass_scale'),
    (dict(share_query_key='yes'), 'share_query_key must be True or False'),
    (dict(feedback_rank=49), 'feedback_rank'),
    (dict(feedback_rank=0), 'feedback_rank'),
    (dict(first_pass_scale=.5, restart_block=1), 'give one or the others'),
    (dict(resart_block=1), 'shortcuts must be a dict with any of restart_block'),
    ('restart_block', 'shortcuts must be a dict'),
])
def test_what_cannot_be_is_refused(shortcuts, message):
    with pytest.raises(InputError, match=message):
        build_network('vit_tiny_patch16', 'absvit', shortcuts=shortcuts, **SIZE)


def test_shortcuts_need_decoders_and_a_signal_on_the_value():
    for design in ('mask_attention', 'perceiver_io'):
        with pytest.raises(InputError, match='feedback through decoders'):
            build_network('vit_tiny_patch16', design, shortcuts=dict(restart_block=1), **SIZE)
    with pytest.raises(InputError, match='share_query_key'):
        build_network('vit_tiny_patch16', 'absvit_qkv', shortcuts=dict(share_query_key=True),
                      **SIZE)
    with pytest.raises(InputError, match='give top_down'):
        build_network('vit_tiny_patch16', shortcuts=dict(restart_block=1), **SIZE)
