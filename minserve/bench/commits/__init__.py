"""CPU time of two checkouts of this repository, case by case, in interleaved pairs."""
