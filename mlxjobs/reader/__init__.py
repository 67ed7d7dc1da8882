"""Runs read again: queries, groups, tables."""
