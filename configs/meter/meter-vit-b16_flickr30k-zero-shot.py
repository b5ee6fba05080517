# Tests a model that has seen nothing of Flickr30K, such as one that learned from other captions.
_base_ = './meter-vit-b16_8xb4-10e_flickr30k-finetuned.py'
train_dataloader = train_cfg = optim_wrapper = param_scheduler = None
val_dataloader = val_cfg = val_evaluator = None
