"""Rows of users' files: every layout as one kind of record, with its pictures, masks and regions."""
