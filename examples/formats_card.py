card = None
