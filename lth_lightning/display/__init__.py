"""What is shown while a fit runs: `terminal` (a line per network, and the one in training) and `tensorboard`.

Rule: observes only. Nothing here changes training.
"""
