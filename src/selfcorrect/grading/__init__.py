"""Graders: text and reference in, Grade out. They import no torch and no task."""
