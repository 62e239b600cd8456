"""Measures of maps against ground truth."""
