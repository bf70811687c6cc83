"""A small real request trace for the demo; see ATTRIBUTION.md."""

__all__: list[str] = []
