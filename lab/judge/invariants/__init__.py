"""The invariants: a catalogue of all, and the judges of those that a history can show."""
