"""Packs: what of artifacts is new, gathered into files that never change; which pieces they hold; encryption.

Add here what is true of a pack wherever it lies: `copies` has the packs of stores, `catalog` those of the
backup directory. Where the pieces of an artifact lie is a recipe (`formats/recipe`).
"""
