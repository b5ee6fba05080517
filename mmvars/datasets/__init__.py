"""Transforms and checks that turn bad data into one clear message, in either framework."""

from mmvars.datasets.checks import CheckLabels, check_data_roots
from mmvars.datasets.corrupt import Corrupt, insert_corrupt
from mmvars.datasets.flickr30k import Flickr30K
from mmvars.datasets.imagenet import ImageNetFolders
from mmvars.datasets.loading import LoadImageFromFile
from mmvars.datasets.pacs import PACS, DomainSampler
from mmvars.datasets.vqa import VQAv2

__all__ = [
    'PACS',
    'CheckLabels',
    'Corrupt',
    'DomainSampler',
    'Flickr30K',
    'ImageNetFolders',
    'LoadImageFromFile',
    'VQAv2',
    'check_data_roots',
    'insert_corrupt',
]
