"""Metrics of evaluation."""
