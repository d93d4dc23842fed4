"""The sub-commands of `goldengate` that are no package of their own: their options, and what each runs and prints."""
