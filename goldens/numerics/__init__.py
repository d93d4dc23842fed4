"""Numeric building blocks of the goldens: rounding, quantisation, exact products, summation orders."""
