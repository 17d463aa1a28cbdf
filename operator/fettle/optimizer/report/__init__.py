"""The report: one self-contained HTML file with the gain, its cost in accuracy, and the evidence."""

from fettle.optimizer.report.page import Material, render

__all__ = ["Material", "render"]
