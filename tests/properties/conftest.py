"""Hypothesis profiles of the property suite.

`ci`, the default: the same few examples in every run. `fuzz`: new ones, many, with Hypothesis' example database:
`pytest tests/properties --hypothesis-profile=fuzz`.
"""

from hypothesis import HealthCheck, Phase, settings

PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink]
"""All but `explain`, which takes longer than the shrinking and lists lines of torch."""
SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]

COMMON = {"deadline": None, "phases": PHASES, "suppress_health_check": SLOW_IS_FINE}

settings.register_profile("ci", max_examples=4, derandomize=True, database=None, **COMMON)
settings.register_profile("fuzz", max_examples=400, print_blob=True, **COMMON)
settings.load_profile("ci")
