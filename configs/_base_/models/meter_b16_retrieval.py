_base_ = './meter_b16.py'
model = dict(
    text_backbone=dict(max_length=40, text_vector='eos'),
    head=dict(_delete_=True, type='mmvars.RetrievalHead'),
)
