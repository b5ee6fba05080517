"""Vision and language: METER, whose text is the prior of its vision backbone (Table 2.1)."""

from mmvars.vision_language.fusion import CoAttentionFusion, CoAttentionLayer
from mmvars.vision_language.heads import RetrievalHead, VQAHead
from mmvars.vision_language.meter import METER
from mmvars.vision_language.text_backbone import TextBackbone, TextFeatures

__all__ = [
    'METER',
    'CoAttentionFusion',
    'CoAttentionLayer',
    'RetrievalHead',
    'TextBackbone',
    'TextFeatures',
    'VQAHead',
]
