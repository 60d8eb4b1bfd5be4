"""Other people's firewalls: an accept in our own table cannot undo a drop in somebody else's."""
