"""What a run takes of memory and time, worked out before it: `selfcorrect plan` (docs/plan.md)."""
