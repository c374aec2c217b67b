"""Who answers a component's questions: one request type, one protocol, many backends."""

from capreward.judges.base import Judge, Reply, Request, Sampling, Task, Usage

__all__ = ["Judge", "Reply", "Request", "Sampling", "Task", "Usage"]
