"""Carries the engine out: drivers, the renewal of leases, repeats that wait."""
