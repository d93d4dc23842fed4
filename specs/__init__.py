"""What an op's inputs and outputs are: signatures, cases, input distributions, validity. Imports `goldens`."""
