"""Transforms and checks that turn bad data into one clear message. Works in both hosts."""

from mmvars.datasets.labels import CheckLabels
from mmvars.datasets.loading import LoadImageFromFile
from mmvars.datasets.roots import check_data_roots

__all__ = ['CheckLabels', 'LoadImageFromFile', 'check_data_roots']
