"""`semel check` over Semel and over other libraries: `python -m bench.peers`, `make peers`."""
