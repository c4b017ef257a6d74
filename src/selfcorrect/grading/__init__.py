"""Graders: text and reference in, verdict out. They import no torch and no task."""
