"""Tools that test idempotency: histories and their checker, and the means to make histories."""
