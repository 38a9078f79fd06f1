"""Methods by budgets on one model: what each costs, and what it does to answers, with controls always among them."""

from tokcarve.exporters.sweeping.engine import Sweep, sweep

__all__ = ["Sweep", "sweep"]
