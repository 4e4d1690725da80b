"""Masks and how they are made: tensors in, tensors out.

Read in this order: `masks` (which weights are kept), `mask_hooks` (pruned weights stay at 0; `held_mask`,
`optimizer_hooks` and `guard` are how), `criteria` (a score for each weight), `pruning` (how many go, and against
what); then `prunable` and `matrices` (which weights may go), `state` (a network's tensors by name), and
`network_function` with `gradient_criteria` (SNIP, GraSP, SynFlow).

Rule: nothing here knows rounds, files or Lightning.
"""
