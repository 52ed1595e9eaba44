"""The tasks of the demo adapters: each file makes its own examples and scores its own answers."""

from demo_tasks.task import Example, Task

__all__ = ["Example", "Task", "all_tasks"]


def all_tasks() -> dict[str, Task]:
    """Return every demo task by the name of its adapter."""
    from demo_tasks import dates, order_json, sql, triage

    return {task.name: task for task in (order_json.TASK, sql.TASK, dates.TASK, triage.TASK)}
