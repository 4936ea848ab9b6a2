"""What tokens cost: prices of vendors and of one's own machines, and what follows from them."""

from pressroom.cost.base import NANO, Price

__all__ = ["NANO", "Price"]
