"""Files that another program may have written: bounded, checked, or refused with a sentence."""
