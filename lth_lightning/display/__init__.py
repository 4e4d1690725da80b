"""What is shown while a fit runs: `terminal` (a line a network, and the one in training) and `tensorboard` (its pages).

Rule: only looks. Nothing here changes what is trained.
"""
