"""`semel demo`: a shop under a storm of retries, crashes and double-clicks."""
