"""Hypothesis profiles of the property suite.

`ci`, the default: the same few examples in every run. `fuzz`: new ones, many, with Hypothesis' example database:
`pytest tests/properties --hypothesis-profile=fuzz`.
"""

from hypothesis import HealthCheck, settings

SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "ci", max_examples=8, derandomize=True, database=None, deadline=None, suppress_health_check=SLOW_IS_FINE
)
settings.register_profile("fuzz", max_examples=400, deadline=None, suppress_health_check=SLOW_IS_FINE, print_blob=True)
settings.load_profile("ci")
