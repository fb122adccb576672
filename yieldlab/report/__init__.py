"""How results look; nothing is computed here."""
