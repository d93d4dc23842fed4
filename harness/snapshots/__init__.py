"""Snapshots: the inputs and golden of one case on disk, with a manifest that says what they are.

`layouts` writes and reads the tensors, `manifest` says what a snapshot holds and whether that still stands, `save` and
`load` are the two directions, `command` is `goldengate replay`. docs/snapshots.md has the format.
"""
