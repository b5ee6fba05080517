"""The measure of other tests sees what is allocated after a larger peak, or beside garbage."""

import gc

from peak_memory import needs_proc, start_peak


@needs_proc
def test_a_peak_below_an_earlier_one_is_seen() -> None:
    earlier = start_peak()
    bytearray(1 << 30)
    assert earlier() > 1000 << 20
    growth = start_peak()
    assert growth() < 16 << 20
    bytearray(512 << 20)
    assert 500 << 20 < growth() < 600 << 20


@needs_proc
def test_garbage_of_before_hides_nothing() -> None:
    cycle: list = [bytearray(600 << 20)]
    cycle.append(cycle)
    del cycle
    growth = start_peak()
    gc.collect()
    bytearray(512 << 20)
    assert 500 << 20 < growth() < 600 << 20
