"""The vocabulary of SAE Workbench: what goes in, what comes out, what travels. No torch here."""
