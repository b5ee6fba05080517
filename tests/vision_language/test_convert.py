"""Released files of METER, both ways. Their layout is that of transformers' own modules."""

import sys

import pytest
import torch

from mmvars.checkpoints import CheckpointError, convert_checkpoint
from mmvars.cli import main
from mmvars.registry import MODELS

transformers = pytest.importorskip('transformers')
pytest.importorskip('mmpretrain')

WIDTH, HIDDEN, DEPTH = 24, 12, 2
SIZES = dict(embed_dim=WIDTH, depth=DEPTH, patch_size=8)
HEADS = {
    'vqa': {
        'vqa_classifier.0': (2 * HIDDEN, 2 * HIDDEN),
        'vqa_classifier.1': (2 * HIDDEN,),
        'vqa_classifier.3': (5, 2 * HIDDEN),
    },
    'retrieval': {'rank_output': (1, 2 * HIDDEN), 'itm_score.fc': (2, 2 * HIDDEN)},
}


@pytest.fixture
def released(text_folder):
    """The state dict of a small METER in the names of the release, by its head."""
    from transformers.models.bert.modeling_bert import BertLayer

    def build(head):
        shapes = {
            'cls_token': (1, 1, WIDTH),
            'pos_embed': (1, 17, WIDTH),
            'patch_embed.proj.weight': (WIDTH, 3, 8, 8),
            'patch_embed.proj.bias': (WIDTH,),
            'norm': (WIDTH,),
            'head': (1000, WIDTH),
            'prompt_decoder': (WIDTH, 32),
        }
        for block in range(DEPTH):
            shapes |= {
                f'blocks.{block}.norm1': (WIDTH,),
                f'blocks.{block}.attn.qkv': (3 * WIDTH, WIDTH),
                f'blocks.{block}.attn.proj': (WIDTH, WIDTH),
                f'blocks.{block}.norm2': (WIDTH,),
                f'blocks.{block}.mlp.fc1': (4 * WIDTH, WIDTH),
                f'blocks.{block}.mlp.fc2': (WIDTH, 4 * WIDTH),
                f'decoders.{block}.linear.weight': (WIDTH, WIDTH),
                f'decoders.{block}.linear2.weight': (WIDTH, WIDTH),
            }
        shapes = {f'vit_model.{name}': shape for name, shape in shapes.items()}
        shapes |= {
            'cross_modal_text_transform': (HIDDEN, 32),
            'cross_modal_image_transform': (HIDDEN, WIDTH),
            'token_type_embeddings.weight': (2, HIDDEN),
            'cross_modal_image_pooler.dense': (HIDDEN, HIDDEN),
            'cross_modal_text_pooler.dense': (HIDDEN, HIDDEN),
        } | HEADS[head]
        state = {}
        for name, shape in shapes.items():
            if name.rpartition('.')[2] in ('weight', 'bias', 'cls_token', 'pos_embed'):
                state[name] = torch.randn(shape)
            else:
                state |= {
                    f'{name}.weight': torch.randn(shape),
                    f'{name}.bias': torch.randn(shape[0]),
                }
        text = transformers.AutoModel.from_pretrained(text_folder).state_dict()
        state |= {f'text_transformer.{name}': tensor for name, tensor in text.items()}
        state['text_transformer.embeddings.position_ids'] = torch.arange(22)[None]
        config = transformers.BertConfig(
            hidden_size=HIDDEN,
            num_attention_heads=3,
            intermediate_size=4 * HIDDEN,
            is_decoder=True,
            add_cross_attention=True,
            attn_implementation='eager',
        )
        for stream in ('text', 'image'):
            for index in range(DEPTH):
                layer = BertLayer(config).state_dict()
                state |= {
                    f'cross_modal_{stream}_layers.{index}.{name}': torch.randn_like(tensor)
                    for name, tensor in layer.items()
                }
        return state

    return build


def save(folder, state):
    """As Lightning writes it."""
    content = dict(
        state_dict=state,
        epoch=3,
        global_step=7,
        optimizer_states=[dict(state={0: dict(exp_avg=torch.ones(2))})],
    )
    torch.save(content, folder / 'meter.ckpt')
    return folder / 'meter.ckpt'


@pytest.mark.parametrize('head', HEADS)
def test_a_released_file_and_back(released, bert_names, text_folder, tmp_path, head):
    """Every tensor fills one of the model, and comes back as it was."""
    state = released(head)
    source, target = save(tmp_path, state), tmp_path / 'meter.pth'
    report = convert_checkpoint(source, target, 'absvit_tiny', **SIZES)
    ignored = {
        key
        for key in state
        if key.startswith(('vit_model.head.', 'text_transformer.pooler.'))
        or key.endswith('position_ids')
    }
    assert {entry.source for entry in report.entries if entry.source[0] != '['} == state.keys()
    ours = torch.load(target, weights_only=True)['state_dict']
    assert len(ours) == len(state) - len(ignored)
    kind = dict(type='mmvars.VQAHead', num_answers=5)
    model = MODELS.build(
        dict(
            type='mmvars.METER',
            backbone=dict(
                type='mmvars.AbSViT',
                arch=dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=2, patch_size=8),
                img_size=32,
                out_type='featmap_cls_token',
                prior=dict(type='text', text_dim=32),
                modulation='project',
            ),
            text_backbone=dict(type='mmvars.TextBackbone', name=str(text_folder), max_length=20),
            head=kind if head == 'vqa' else dict(type='mmvars.RetrievalHead'),
            fusion=dict(hidden_dim=HIDDEN, num_layers=DEPTH, num_heads=3),
        )
    )
    model.load_state_dict(ours)
    for stream in ('text', 'image'):
        for name, bert in bert_names.items():
            value = ours[f'fusion.{stream}_layers.1.{name}.weight']
            assert torch.equal(value, state[f'cross_modal_{stream}_layers.1.{bert}.weight'])
        transform = state[f'cross_modal_{stream}_transform.bias']
        assert torch.equal(ours[f'fusion.{stream}_projection.bias'], transform)
        pooler = state[f'cross_modal_{stream}_pooler.dense.weight']
        assert torch.equal(ours[f'fusion.{stream}_pooler.weight'], pooler)
    projection = model.backbone.network.prior.projection
    assert torch.equal(projection.weight, state['vit_model.prompt_decoder.weight'])
    below = model.backbone.network.feedback.decoders[1].to_below.weight
    assert torch.equal(below, state['vit_model.decoders.1.linear.weight'])
    words = model.text_backbone.model.embeddings.word_embeddings.weight
    assert torch.equal(words, state['text_transformer.embeddings.word_embeddings.weight'])
    if head == 'vqa':
        assert torch.equal(model.head.layers[3].bias, state['vqa_classifier.3.bias'])
    else:
        assert torch.equal(model.head.rank.weight, state['rank_output.weight'])
        assert torch.equal(model.head.matching.bias, state['itm_score.fc.bias'])

    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch_1.pth')
    back = tmp_path / 'back.ckpt.pth'
    report = convert_checkpoint(
        tmp_path / 'epoch_1.pth', back, 'absvit_tiny', to='release', **SIZES
    )
    returned = torch.load(back, weights_only=True)['state_dict']
    assert returned.keys() == state.keys() - ignored
    assert {entry.target for entry in report.entries} == returned.keys()
    for name, tensor in returned.items():
        assert torch.equal(tensor, state[name]), name


def test_nothing_may_be_missing_or_unknown(released, tmp_path):
    for change, said in (
        (dict(remove='cross_modal_image_layers.1.crossattention.self.key.bias'), 'MISSING'),
        (dict(remove='cross_modal_text_pooler.dense.weight'), 'MISSING'),
        (dict(add='cross_modal_text_layers.0.extra.weight'), 'UNEXPECTED'),
        (dict(add='mlm_score.bias'), 'UNEXPECTED'),
    ):
        state = released('vqa')
        state.pop(change.get('remove'), None)
        if 'add' in change:
            state[change['add']] = torch.zeros(1)
        with pytest.raises(CheckpointError, match=said) as caught:
            convert_checkpoint(save(tmp_path, state), tmp_path / 'x.pth', 'absvit_tiny', **SIZES)
        names = ' '.join(str((e.source, e.target)) for e in caught.value.report.problems)
        assert len(caught.value.report.problems) == 1
        assert change.get('add', '') in names
        assert 'image_layers.1.cross_attn.key.bias' in names or 'crossattention' not in str(change)
        assert not (tmp_path / 'x.pth').exists()


@pytest.mark.parametrize('head', HEADS)
def test_every_part_is_compared(released, tmp_path, head):
    """One tensor of each part of another shape, or removed: all are named, and no others."""
    shapes = {
        'vit_model.prompt_decoder.weight': (WIDTH, 31),
        'cross_modal_text_transform.weight': (HIDDEN, 31),
        'cross_modal_image_transform.weight': (HIDDEN, WIDTH + 1),
        'token_type_embeddings.weight': (3, HIDDEN),
        'cross_modal_text_layers.1.crossattention.self.key.weight': (HIDDEN, HIDDEN + 1),
        'cross_modal_image_layers.1.attention.output.LayerNorm.bias': (HIDDEN + 1,),
        'cross_modal_image_pooler.dense.bias': (HIDDEN + 1,),
        'text_transformer.embeddings.word_embeddings.weight': (19, 31),
        'text_transformer.embeddings.LayerNorm.bias': (31,),
        'text_transformer.encoder.layer.0.attention.self.query.weight': (32, 31),
        'text_transformer.encoder.layer.1.intermediate.dense.bias': (65,),
    }
    if head == 'vqa':
        shapes['vqa_classifier.1.weight'] = (2 * HIDDEN + 1,)
        shapes['vqa_classifier.3.weight'] = (5, 2 * HIDDEN + 1)
        shapes['vqa_classifier.3.bias'] = (6,)
    else:
        shapes |= {'rank_output.weight': (2, 2 * HIDDEN), 'itm_score.fc.bias': (3,)}
    state = released(head)
    assert all(state[key].shape != shape for key, shape in shapes.items())
    wrong = save(tmp_path, state | {key: torch.zeros(shape) for key, shape in shapes.items()})
    with pytest.raises(CheckpointError, match='WRONG SHAPE') as caught:
        convert_checkpoint(wrong, tmp_path / 'x.pth', 'absvit_tiny', **SIZES)
    problems = {entry.source: entry.target_shape for entry in caught.value.report.problems}
    assert problems == {key: tuple(state[key].shape) for key in shapes}
    lacking = save(tmp_path, {key: value for key, value in state.items() if key not in shapes})
    with pytest.raises(CheckpointError, match='MISSING') as caught:
        convert_checkpoint(lacking, tmp_path / 'x.pth', 'absvit_tiny', **SIZES)
    assert len(caught.value.report.problems) == len(shapes)
    assert not (tmp_path / 'x.pth').exists()


@pytest.mark.parametrize(
    'parts',
    [
        {'text_transformer.': 'text_backbone.model.', 'vqa_classifier.': 'head.layers.'},
        {'cross_modal_': 'fusion.text_layers.', 'vit_model.prompt_decoder.': 'network.prior.'},
        {'vit_model.decoders.': 'network.feedback.decoders.'},
    ],
)
def test_no_part_may_be_missing(released, tmp_path, parts):
    state = {
        key: value for key, value in released('vqa').items() if not key.startswith(tuple(parts))
    }
    with pytest.raises(CheckpointError, match='MISSING') as caught:
        convert_checkpoint(save(tmp_path, state), tmp_path / 'x.pth', 'absvit_tiny', **SIZES)
    problems = caught.value.report.problems
    for names in parts.values():
        assert any(names in str(entry.target) for entry in problems)


def test_to_the_release_is_compared_and_what_was_not_is_said(released, tmp_path, monkeypatch):
    source, ours = save(tmp_path, released('vqa')), tmp_path / 'meter.pth'
    convert_checkpoint(source, ours, 'absvit_tiny', **SIZES)
    content = torch.load(ours, weights_only=True)
    for name in (
        'text_backbone.model.encoder.layer.1.output.dense.weight',
        'fusion.text_layers.1.fc1.weight',
    ):
        state = dict(content['state_dict'])
        state[name] = state[name][:, :-1]
        torch.save(dict(content, state_dict=state), tmp_path / 'wrong.pth')
        with pytest.raises(CheckpointError, match='WRONG SHAPE'):
            convert_checkpoint(
                tmp_path / 'wrong.pth', tmp_path / 'x.pth', 'absvit_tiny', to='release', **SIZES
            )
    monkeypatch.setitem(sys.modules, 'transformers', None)
    report = convert_checkpoint(source, ours, 'absvit_tiny', overwrite=True, **SIZES)
    assert 'METER: 2 layers of fusion in each stream, 2 of the text encoder' in report.remarks
    assert any('text encoder was not checked' in remark for remark in report.remarks)
    unchecked = [entry.target for entry in report.entries if entry.note == 'not checked']
    assert unchecked and all(name.startswith('text_backbone.model.') for name in unchecked)


def test_the_command_and_the_vision_backbone_alone(released, tmp_path, capsys):
    """A file of the whole model fills a backbone, too."""
    source = save(tmp_path, released('vqa'))
    options = '--arch absvit_tiny --embed-dim 24 --depth 2 --patch-size 8'.split()
    assert main(['convert', str(source), str(tmp_path / 'meter.pth'), *options]) == 0
    assert 'source names: released METER' in capsys.readouterr().out
    backbone = MODELS.build(
        dict(
            type='mmvars.AbSViT',
            arch=dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=2, patch_size=8),
            img_size=32,
            prior=dict(type='text', text_dim=32),
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'meter.pth')),
        )
    )
    backbone.init_weights()
    ours = torch.load(tmp_path / 'meter.pth', weights_only=True)['state_dict']
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, ours[f'backbone.{name}']), name
