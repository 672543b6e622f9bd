"""`exeat doctor --jail`: a real jail of a real appliance, and every way out of it tried."""
