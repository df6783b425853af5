"""The laboratory: what shows that Semel keeps its promises. Not part of the wheel."""
