"""Kernels as products of smaller ones: truncated SVD, spatial, Tucker-2 and depthwise-separable factorization."""

from tfcompress.techniques.factorize.factorize import factorization_plan as factorization_plan
from tfcompress.techniques.factorize.factorize import factorize as factorize
from tfcompress.techniques.factorize.plan import FactorizationPlan as FactorizationPlan
from tfcompress.techniques.factorize.plan import LayerFactorization as LayerFactorization
