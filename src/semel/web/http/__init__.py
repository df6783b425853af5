"""The parts that the adapters of every protocol share."""
