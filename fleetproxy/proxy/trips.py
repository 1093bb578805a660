"""Placeholder until the breaker lands."""
