# Trains on a CPU in minutes, on shapes: no number is to be compared with published ones.
_base_ = [
    '../_base_/models/meter_mini.py',
    '../_base_/datasets/easy_vqa.py',
    '../_base_/schedules/meter_mini.py',
    '../_base_/runtime/meter_mini.py',
]
