"""Training on many processes: who is there, who does what, what all of them know. docs/parallel.md says how it works.

torch.distributed is imported here alone, and only where a launcher started several processes.
"""
