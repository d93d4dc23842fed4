"""Inputs and outputs of ops: signatures, cases, input distributions, validity. Imports `goldens`."""
