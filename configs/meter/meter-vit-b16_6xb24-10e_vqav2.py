# 67.89 % on test-dev and 67.92 % on test-std reported by the authors (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16.py',
    '../_base_/datasets/vqav2.py',
    '../_base_/schedules/meter_10e.py',
    '../_base_/runtime/meter.py',
]
