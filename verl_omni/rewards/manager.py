def register(m):
    pass
