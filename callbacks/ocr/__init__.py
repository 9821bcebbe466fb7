"""Reading text on pictures: PaddleOCR's models, their engine, and a process of its own for it."""
