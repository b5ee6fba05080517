"""The published segmentation model at its full size: one training step of AbSViT-B + UperNet."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

CONFIG = Path(__file__).parents[2] / 'configs' / 'absvit_upernet_ade20k.py'


@pytest.mark.slow
@pytest.mark.parametrize('reconstruction', [0.0, 0.1])
def test_forward_and_backward_at_512(reconstruction):
    pytest.importorskip('mmseg')
    from mmengine.model import revert_sync_batchnorm
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    cfg = Config.fromfile(str(CONFIG))
    cfg.model.backbone.reconstruction_loss_weight = reconstruction
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    assert sum(p.numel() for p in model.backbone.parameters()) == 100_591_104

    sample = SegDataSample(metainfo=dict(ori_shape=(512, 512), img_shape=(512, 512)))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 512, 512)))
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 512, 512), dtype=torch.uint8)] * 2,
        data_samples=[sample, sample.clone()],
    )  # two: BN cannot normalize one pooled pixel
    data = model.data_preprocessor(batch, training=True)
    losses = model(**data, mode='loss')
    loss, log = model.parse_losses(losses)
    loss.backward()

    expected = {'decode.loss_ce', 'aux.loss_ce'}
    if reconstruction:
        expected.add('backbone.loss_reconstruction')
    assert {key for key in log if 'loss' in key} == expected | {'loss'}
    assert torch.isfinite(loss)
    # An untrained head starts near ln(150).
    assert float(losses['decode.loss_ce'].detach()) == pytest.approx(5.01, abs=1.0)
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert without == []
