"""The error of all trainings."""

from panderm_utils.messages import UserError


class TrainingError(UserError):
    """A training that cannot be done as requested; the message says why and what to do."""
