"""Measures training and sampling speed."""
