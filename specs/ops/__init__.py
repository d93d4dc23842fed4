"""One op per file; each has `build(config, deployment) -> Op`. `specs.registry` finds them by file name."""
