"""`selfcorrect compare`: many methods and seeds under one budget, one table.

file -> plan (runs, what they share, budget) -> search -> runs -> answers -> page, Markdown, CSV
"""
