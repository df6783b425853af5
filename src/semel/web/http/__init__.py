"""What the adapters of every protocol share."""
