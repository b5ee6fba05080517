"""What our models cost: parameters, multiply-adds, time and memory. Pure torch."""

from mmvars.benchmark.multiply_adds import MultiplyAdds, count_multiply_adds
from mmvars.benchmark.sizes import count_parameters

__all__ = ['MultiplyAdds', 'count_multiply_adds', 'count_parameters']
