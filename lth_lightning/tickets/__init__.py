"""A winning ticket on disk: mask, rewind point and trained weights in one small file without pickle.

Read `ticket`, then `rebuilding` and `prediction` (use it), `transfer` (train tickets from files), then `packed_file`
(read a ticket's file without torch) and `shown` (in a notebook). README.md says how to use a ticket.

Rule: this package imports `pruning` and the foundation only.
"""
