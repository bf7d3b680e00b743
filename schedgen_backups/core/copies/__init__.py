"""Copies of recovery points in stores elsewhere: packs, recipes, encryption, proof, pruning, reading back.

Add here what the keys and files of a copy mean (docs/file-format.md, "Copies"). Nothing here knows how a
store is reached (`store`) or how a point is restored once its files are back (`restore`).
"""
