"""Device kernels in the PyPTO tile DSL, one op per file. Importing this package imports no kernel."""
