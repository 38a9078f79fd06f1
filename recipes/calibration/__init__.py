"""Calibration: samples in, constants out. Work is cut into tasks of one sample, which are kept, resumed and spread."""
