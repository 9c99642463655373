"""The GPU side: estimates by roofline and collective model, and real forward passes."""
