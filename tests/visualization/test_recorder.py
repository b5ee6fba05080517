"""The recorder sees all passes, changes nothing, and leaves nothing behind."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.networks import create_model
from mmvars.visualization.draw import resolve_layer
from mmvars.visualization.maps import token_norm_map
from mmvars.visualization.recorder import recording

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=5, num_heads=3, num_classes=4)


@pytest.fixture
def absvit():
    network = create_model('absvit_tiny_patch16', **SMALL).eval()
    with torch.no_grad():  # fresh decoders are too weak at this width to be told from rounding
        for parameter in network.feedback.parameters():
            parameter.mul_(20)
    return network


@pytest.fixture
def vit():
    return create_model('vit_tiny_patch16', **SMALL).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 40)


def hook_count(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def probabilities(mixer, args, output):
    return mixer.attention_probabilities(*args)


def block_tokens(block, args, output):
    return output, args[1]


def record(network, images, layer, function=probabilities, part='attn', **arguments):
    """What the network returned, and the records of a block or its mixer."""
    block = getattr(network, 'trunk', network).blocks[layer]
    watched = dict(calls=(block if part == 'block' else block.attn, function))
    with torch.no_grad(), recording(network, watched, **arguments) as records:
        network(images)
    (output,) = records['output']
    return output, records['calls']


def test_the_probabilities_of_each_pass_reproduce_the_fused_output(absvit, images):
    attention = absvit.trunk.blocks[2].attn
    calls = []  # input, top-down tensor, output of each call
    handle = attention.register_forward_hook(lambda m, args, out: calls.append((*args[:3], out)))
    _, records = record(absvit, images, 2)
    handle.remove()
    assert len(records) == len(calls) == 2 and calls[1][2] is not None
    for (x, _, top_down, output), matrix in zip(calls, records, strict=True):
        assert matrix.shape == (2, 3, 16, 16)
        torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 3, 16))
        weight, bias = attention.qkv.weight[48:], attention.qkv.bias[48:]
        value = x @ weight.T + bias
        if top_down is not None:
            value = value + top_down @ weight.T + bias
        heads = value.unflatten(2, (3, 8)).transpose(1, 2)
        torch.testing.assert_close(
            attention.proj((matrix @ heads).transpose(1, 2).flatten(2)), output
        )


def test_the_two_passes_are_told_apart(absvit, images):
    # Queries and keys of the first block do not see the top-down input; those of later blocks do.
    first, last = (record(absvit, images, layer, alpha=10.0)[1] for layer in (0, 4))
    torch.testing.assert_close(first[0], first[1])
    assert (last[0] - last[1]).abs().max() > 1e-3


def test_a_plain_network_has_one_pass_and_three_passes_are_three(vit, images):
    assert len(record(vit, images, -1)[1]) == 1
    network = create_model('absvit_tiny_patch16', **SMALL, num_passes=3).eval()
    assert len(record(network, images, -1)[1]) == 3


@pytest.mark.parametrize('fused', [False, True])
def test_recording_changes_no_output_and_leaves_nothing_behind(absvit, images, fused):
    if fused:
        absvit.fuse()
    state = {name for m in absvit.modules() for name in vars(m)}
    block = absvit.trunk.blocks[-1]
    watched = dict(tokens=(block, block_tokens), matrix=(block.attn, probabilities))
    with torch.no_grad():
        expected = absvit(images).second.tokens
        with recording(absvit, watched):
            assert hook_count(absvit) == 4
            recorded = absvit(images).second.tokens
    assert torch.equal(recorded, expected)
    assert hook_count(absvit) == 0
    assert {name for m in absvit.modules() for name in vars(m)} == state


def test_all_tokens_are_there_to_see_although_the_classifier_reads_one(absvit, images):
    watched = dict(tokens=(absvit.trunk.blocks[-1], block_tokens))
    with torch.no_grad(), recording(absvit, watched) as records:
        output = absvit(images, None, None, (), False, True)  # pooled_only
    assert records['tokens'][1][0].shape == output.second.tokens.shape == (2, 16, 24)


def test_hooks_go_when_the_forward_fails(absvit):
    with pytest.raises(InputError, match='smaller than one patch'), recording(absvit, {}):
        absvit(torch.zeros(1, 3, 4, 4))
    assert hook_count(absvit) == 0


def test_tokens_are_those_of_the_block_in_both_passes(absvit, images):
    recorded, (first, second) = record(absvit, images, 3, block_tokens, 'block')
    with torch.no_grad():
        output = absvit(images, out_indices=(3,))
        plain = absvit.trunk(images, out_indices=(3,))
    torch.testing.assert_close(second[0], output.second.intermediates[0])
    torch.testing.assert_close(first[0], plain.intermediates[0])
    assert token_norm_map(*first).shape == (2, 3, 5)
    torch.testing.assert_close(recorded.second.tokens, output.second.tokens)


def test_prior_and_scale_reach_the_network(absvit, images):
    prior = torch.randn(24)
    recorded, _ = record(absvit, images, 0, prior=prior, alpha=10.0)
    with torch.no_grad():
        expected = absvit(images, prior=prior, alpha=10.0)
    torch.testing.assert_close(recorded.token_weights, expected.token_weights)
    torch.testing.assert_close(recorded.second.tokens, expected.second.tokens)
    assert absvit.alpha == 1.0


def test_a_plain_network_takes_neither_prior_nor_scale(vit):
    for arguments in (dict(alpha=2.0), dict(prior=torch.randn(24))):
        with pytest.raises(InputError, match='this network has none: leave them out'):
            record(vit, torch.zeros(1, 3, 32, 32), 0, **arguments)


def test_with_alpha_zero_all_top_down_inputs_are_zero_whatever_the_prior(absvit, images):
    # Not the plain ViT: a zero input still adds the value bias a second time.
    runs = []
    for prior in (None, torch.randn(24)):
        recorded, tokens = record(absvit, images, 4, block_tokens, 'block', prior=prior, alpha=0.0)
        assert all(top_down.abs().max() == 0 for top_down in recorded.top_down)
        runs.append([record[0] for record in tokens])
    torch.testing.assert_close(runs[0], runs[1])


def test_the_default_layer_is_the_last_of_all_but_three():
    assert [resolve_layer(None, depth) for depth in (1, 2, 3, 4, 5, 12)] == [0, 0, 0, 0, 1, 8]
    assert [resolve_layer(i, 12) for i in (0, 11, -1, -12)] == [0, 11, 11, 0]


@pytest.mark.parametrize('layer', [12, -13])
def test_a_layer_that_does_not_exist_is_refused(layer):
    with pytest.raises(InputError, match=f'layer must be .* 0 to 11 .* got {layer}'):
        resolve_layer(layer, 12)
