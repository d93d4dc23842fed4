"""Tolerances fitted to the ensemble of legal devices, and false alarms counted on seeds that the fit has not seen.

`ensemble` says what is run and runs it, `observe` what one run would have needed, `fit` what follows for a tolerance,
`rewrite` puts that into `tolerances.yaml`, `check` counts false alarms, `command` is `goldengate calibrate`.
"""
