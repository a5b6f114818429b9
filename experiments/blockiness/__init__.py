"""How much patches show in translations."""
