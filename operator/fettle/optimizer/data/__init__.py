"""Evaluation and calibration data: one file a format, read exactly or refused."""
