"""Chat prompts whose answers repeat their input, and some whose answers do not, by category."""

LISTING = """class Basket:
    def __init__(self, owner):
        self.owner = owner
        self.items = []

    def add(self, name, price, count=1):
        for _ in range(count):
            self.items.append((name, price))

    def total(self):
        amount = 0.0
        for name, price in self.items:
            amount = amount + price
        return amount

    def describe(self):
        for name, price in self.items:
            print(name, "costs", price)
        print("total for", self.owner, "is", self.total())
"""
LETTER = (
    "The harbour office will close at noon on Friday because the crane on the north pier has to be"
    " inspected. Boats that need to unload before the weekend should register with the harbour"
    " master by Thursday evening. Boats that miss the inspection may anchor in the outer bay,"
    " where a pilot will meet them on Monday morning. Please keep the channel free for the ferry."
)
TABLE = "\n".join(
    f"order {number}: {count} boxes of {what} for {town}, paid on day {day}"
    for number, count, what, town, day in (
        (1041, 3, "apples", "Riverton", 4),
        (1042, 12, "candles", "Millbrook", 9),
        (1043, 7, "paper", "Riverton", 11),
        (1044, 1, "ink", "Eastgate", 12),
        (1045, 20, "nails", "Millbrook", 17),
        (1046, 5, "rope", "Harbour Town", 21),
    )
)
PROMPTS = {
    "rewrite": (
        f"Copy this text word for word:\n{LETTER}",
        f"Write the following letter again without any change:\n{LETTER}",
    ),
    "code edit": (
        f"Copy this code exactly and add a docstring to the class:\n```python\n{LISTING}```",
        f"Repeat this code exactly, but rename Basket to Cart:\n```python\n{LISTING}```",
    ),
    "extraction": (
        f"List all orders, one a line, exactly as they are written:\n{TABLE}",
        f"Copy every order of this list:\n{TABLE}",
    ),
    "free text": (
        "Write a short story about a lighthouse keeper who finds a letter.",
        "Explain how bread rises, for a child.",
        "What should somebody see on a first day in a harbour town?",
    ),
}
