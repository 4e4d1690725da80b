"""The experiment: one `Trainer.fit` that trains, prunes, rewinds and repeats.

Read `plan` (which networks, in which order), `rewinding` (what a round hands on to the next), `callback`
(LotteryTicket); then `recorder` (a network's evaluations and its row), `divergence` and `summary_curves`.

Rule: speaks of rounds, tickets and rewinding. What Lightning's loops need is in `trainer`.
"""
