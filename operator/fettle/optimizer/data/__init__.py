"""Evaluation and calibration data: one module per format. Values are read exactly or refused."""
