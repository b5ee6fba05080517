# Trained on Flickr30K, as the released command does. Under "zero-shot" the authors report IR@1
# 42.40, IR@5 77.18, IR@10 86.82 % (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16_retrieval.py',
    '../_base_/datasets/flickr30k.py',
    '../_base_/schedules/meter_10e_retrieval.py',
    '../_base_/runtime/meter.py',
]
