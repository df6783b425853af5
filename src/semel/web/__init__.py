"""HTTP adapters, each thin: translate, drive, translate back."""
