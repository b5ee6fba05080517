"""Robustness of any segmentor or classifier: corruptions of images."""

from mmvars.robustness.corruptions import CORRUPTIONS, EXTRA, STANDARD, check_corruption, corrupt

__all__ = ['CORRUPTIONS', 'EXTRA', 'STANDARD', 'check_corruption', 'corrupt']
