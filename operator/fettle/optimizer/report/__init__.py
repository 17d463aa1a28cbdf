"""The report: one self-contained HTML file that says what was won, what it cost, and why that may be believed."""

from fettle.optimizer.report.page import Material, render

__all__ = ["Material", "render"]
