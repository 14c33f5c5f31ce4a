"""Rates with their uncertainty."""
