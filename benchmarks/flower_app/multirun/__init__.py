"""Flower's how-to "Use Multi-run": run it twice at once, over the same nodes."""
