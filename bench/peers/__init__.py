"""Other engines beside this one, in one run: each in a process of its own, which tells its times.

The modules named after a peer run in that peer's own environment, and import nothing else of this project.
"""
