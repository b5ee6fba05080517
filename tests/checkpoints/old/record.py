"""How the files of this folder were made: by mmvars at commit d73aeed, before its keys changed.

Run with that version in the Python path: ``python record.py TOY FOLDER``, where TOY is what the
fixture ``toy`` of ``tests/integration/conftest.py`` makes. Each file is the checkpoint of a real
run of two iterations. ``meta['recorded']``: the feature maps of its backbone for :func:`images`.
"""

import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmvars.engine.train import main

VIT = 'arch=dict(embed_dims=8, num_layers=2, num_heads=2, patch_size=8), img_size=32, '
RVT = (
    "arch=dict(trunk='rvt', embed_dims=[4, 8], num_layers=[1, 1], num_heads=[1, 2], "
    'mlp_ratio=1), img_size=32, '
)
BACKBONES = {
    'vit': f"type='mmvars.ViT', {VIT}out_indices=(0, 1)",
    'absvit': f"type='mmvars.AbSViT', {VIT}out_indices=(0, 1)",
    'abs_rvt': f"type='mmvars.AbSViT', {RVT}mixer='vars_d', mixer_cfg=dict(num_steps=2), "
    'out_indices=(0, 1)',
    'rvt_vars_s': f"type='mmvars.VARS', {RVT}mixer='vars_s', out_indices=(0, 1)",
    'rvt_vars_sd': f"type='mmvars.VARS', {RVT}mixer='vars_sd', out_indices=(0, 1)",
    'rvt_vars_sd_thesis': f"type='mmvars.VARS', {RVT}mixer='vars_sd', "
    "mixer_cfg=dict(preset='thesis'), out_indices=(0, 1)",
}
CHANGES = """
model['backbone'] = dict({backbone})
model['data_preprocessor']['size'] = (32, 32)
model['decode_head'].update(in_channels=8, channels=4)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg.update(max_iters=2)
default_hooks['checkpoint']['interval'] = 2
"""


def images() -> torch.Tensor:
    """Three channels of 24x40 pixels: another grid than that of the training."""
    return (torch.arange(3 * 24 * 40) * 0.37).sin().mul(2).reshape(1, 3, 24, 40)


def record(toy: Path, folder: Path) -> None:
    for name, backbone in BACKBONES.items():
        config = folder / f'{name}.py'
        config.write_text((toy / 'seg.py').read_text() + CHANGES.format(backbone=backbone))
        main([str(config), '--work-dir', str(folder / name), '--no-validate'])
        content = torch.load(folder / name / 'iter_2.pth', weights_only=False)
        model = MODELS.build(Config.fromfile(config).model)
        model.load_state_dict(content['state_dict'])
        with torch.no_grad():
            content['meta']['recorded'] = [
                each.contiguous() for each in model.eval().backbone(images())
            ]
        for entry in (content['meta'], content['message_hub']['runtime_info']):
            entry.update(cfg='', dataset_meta={}, last_ckpt='')  # much of the file, and a path
        log = content['message_hub']['log_scalars']
        content['message_hub']['log_scalars'] = {'train/loss': log['train/loss']}
        torch.save(content, folder / f'{name}.pth', _use_new_zipfile_serialization=False)


if __name__ == '__main__':
    record(Path(sys.argv[1]), Path(sys.argv[2]))
