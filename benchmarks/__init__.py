"""How fast minidl is beside other systems: `python -m benchmarks --help`, run in a checkout."""
