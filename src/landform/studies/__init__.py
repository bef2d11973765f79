"""Whole procedures over many models."""
