"""Storages in object stores: each has a mirror, a folder of this machine, and files are copied between the two."""
