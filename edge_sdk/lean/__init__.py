"""The lean trainer: hand-written passes over a frozen base that stays in few bits."""
