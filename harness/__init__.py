"""Runs kernels and judges what they wrote. Imports `specs` (and through it `goldens`); loads kernels as files."""
