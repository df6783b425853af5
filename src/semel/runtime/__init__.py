"""The runtime: drivers that carry the engine out, lease renewal, repeats that wait, outcomes."""
