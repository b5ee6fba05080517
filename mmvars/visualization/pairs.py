"""Two photos side by side, and which of them attention goes to (Figures 2.4, 2.5 and 2.8)."""

import os

import torch
from mmengine.dataset import Compose
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.analysis import HalfShares
from mmvars.visualization.host import ClassTable, Sample, is_segmentor, network_of
from mmvars.visualization.images import load_sample
from mmvars.visualization.steering import HALVES, Steering
from mmvars.visualization.views import Observation

__all__ = ['load_pair', 'pair_row', 'pair_sentence']


def load_pair(left: str, right: str, pipeline: Compose, patch_size: int) -> Sample:
    """Two photos, each as the model's own pipeline prepares it, as one image.

    Where the pipeline leaves them at different heights, the higher one is scaled down to the height
    of the other.

    Returns:
        A sample with its ``seam``.

    Raises:
        InputError: As :func:`~mmvars.visualization.images.load_sample`, for either.
    """
    samples = [load_sample(path, pipeline, patch_size) for path in (left, right)]
    height = min(sample.size[0] for sample in samples)
    halves = [_at_height(sample.inputs, height) for sample in samples]
    inputs = torch.cat(halves, dim=-1)
    shape = tuple(inputs.shape[-2:])
    meta = dict(img_path=f'{os.path.basename(left)} + {os.path.basename(right)}',
                ori_shape=shape, img_shape=shape)
    return Sample(inputs, type(samples[0].data_sample)(metainfo=meta), halves[0].shape[-1])


def pair_row(seen: Observation, row: Steering, rows: list[Steering], model: nn.Module,
             classes: ClassTable) -> dict:
    """What one row says in numbers, ready for JSON; shares and probabilities from 0 to 1."""
    network = network_of(model)
    result = dict(prior=None if row.prior is None else row.prior.label, asked=row.asked,
                  alpha=row.scale(network), bottom_up=_shares(seen.norm_shares[0]))
    if not network.is_plain:
        result |= dict(token_mask=_shares(seen.mask_shares), top_down=_shares(seen.norm_shares[-1]))
    if not is_segmentor(model):
        wanted = {r.prior.class_index for r in rows if r.prior is not None} - {None}
        likeliest = int(seen.prediction.argmax())
        result['prediction'] = classes.names[likeliest]
        result['probabilities'] = {classes.names[i]: float(seen.prediction[i])
                                   for i in sorted(wanted | {likeliest})}
    return result


def pair_sentence(row: dict) -> str:
    """:func:`pair_row` in a line."""
    words = [] if row['prior'] is None else [f'prior {row["prior"]}']
    words += [] if row['alpha'] is None else [f'alpha {row["alpha"]:g}']
    half = row['asked'] or HALVES[0]
    shares = [f'{name} {"no attention at all" if row[key] is None else f"{row[key][half]:.1%}"}'
              for key, name in (('bottom_up', 'bottom-up'), ('top_down', 'top-down'))
              if key in row]
    if row['prior'] is not None and 'token_mask' in row and row['token_mask'] is None:
        shares.append('no token agrees with the prior, so the mask is 0')
    text = f'  {", ".join([*words, f"on the {half} half"])}: {", ".join(shares)}'
    if 'probabilities' in row:
        text += '; ' + ', '.join(f'{name.split(",")[0]} {share:.1%}'
                                 for name, share in row['probabilities'].items())
    return text


def _shares(shares: HalfShares | None) -> dict | None:
    return None if shares is None else shares._asdict()


def _at_height(inputs: Tensor, height: int) -> Tensor:
    if inputs.shape[-2] == height:
        return inputs
    width = max(round(inputs.shape[-1] * height / inputs.shape[-2]), 1)
    scaled = F.interpolate(inputs[None].float(), size=(height, width), mode='bilinear',
                           align_corners=False, antialias=True)[0]
    return scaled.round().clamp(0, 255).to(inputs.dtype)
