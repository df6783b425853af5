"""Simulated histories, all schedules of the small scope, planted bugs."""
