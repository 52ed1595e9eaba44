"""Recipes that wait for their adapters."""

import time

from turret_adapters.wants import EXPIRES_S, WantQueue


class TestWantQueue:
    def test_first_come_first_served(self):
        queue = WantQueue()
        queue.ask(("a", "b"), 0)
        queue.ask(("c",), 0)
        queue.ask(("a", "b"), 1)
        want = queue.first({"a"}.__contains__)
        assert want.missing == ("b",)
        assert want.protected == {"a", "b"}

    def test_complete_recipes_stay_protected_until_they_run(self):
        queue = WantQueue()
        queue.ask(("a", "b"), 0)
        queue.ask(("c",), 0)
        want = queue.first({"a", "b"}.__contains__)
        assert want.missing == ("c",)
        assert want.protected == {"a", "b", "c"}
        queue.done(("a", "b"))
        assert queue.first({"a", "b"}.__contains__).protected == {"c"}

    def test_recipes_nobody_asks_for_expire(self):
        queue = WantQueue()
        queue.ask(("a",), 0)
        assert not queue.ask(("b",), EXPIRES_S)
        assert queue.ask(("b",), EXPIRES_S + 0.1)
        assert queue.first(lambda d: False).missing == ("b",)

    def test_who_keeps_asking_keeps_its_place_when_others_expire(self):
        queue = WantQueue()
        for recipe in ("a", "b", "c"):
            queue.ask((recipe,), 0)
        queue.ask(("b",), EXPIRES_S)
        assert queue.ask(("d",), EXPIRES_S + 0.1)
        assert queue.first(lambda digest: False).missing == ("b",)
        assert queue.first({"b"}.__contains__).missing == ("d",)

    def test_asking_takes_as_long_however_many_wait(self):
        """Every waiting recipe asks at every step."""
        seconds = []
        for number in (100, 3000):
            queue, recipes = WantQueue(), [(str(i),) for i in range(number)]
            for recipe in recipes:
                queue.ask(recipe, 0)
            rounds = []
            for _ in range(3):
                began = time.process_time()
                for recipe in recipes[:100]:
                    queue.ask(recipe, 0)
                rounds.append(time.process_time() - began)
            seconds.append(min(rounds))
        assert seconds[1] < 8 * seconds[0]  # 30 times if all were looked at

    def test_a_dropped_adapter_takes_its_recipes_along(self):
        queue = WantQueue()
        queue.ask(("a", "b"), 0)
        queue.drop("b")
        assert queue.first(lambda d: False) is None
