# VOC 2012 with the 9,118 further labels of SBD, as mmseg's converter lays them out.
_base_ = './voc12.py'
train_set = _base_.train_dataloader.dataset
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            train_set,
            dict(
                type=train_set.type,
                data_root=_base_.data_root,
                data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
                ann_file='ImageSets/Segmentation/aug.txt',
                pipeline=_base_.train_pipeline,
            ),
        ],
    )
)
