"""Language identification: bags of units of texts, and heads that read them.

Every head is linear in the bag of an example: it has a weight for each (unit, label) on the number
of tokens on which the unit fires, and `sae-min-max` also one on the sum of its values. So all heads
are stored, applied and explained in the same way.
"""
