"""Training on many processes: who is there, who does what, what all of them know. docs/parallel.md says how it works.

A process group is made and given up here alone (joining.py), and only where a launcher started several processes.
"""
