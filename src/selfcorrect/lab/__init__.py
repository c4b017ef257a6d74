"""The lab: a language model small enough to learn self-correction on two CPU cores, and how it is made."""
