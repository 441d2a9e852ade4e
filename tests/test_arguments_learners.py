"""What learners, training, presets and figures say of arguments that cannot be right.

CALLS holds a valid call of each; one argument at a time is replaced by what cannot be right.
"""
