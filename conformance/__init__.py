"""The conformance suite: for each subject a module of checks, `test_*.py`.

What they share, each with one duty (CONTRIBUTING.md has the rules of a check):

* `conftest`        fixtures of several modules
* `base_requests`   what checks of generation ask for
* `traffic`         requests whose answers are known: one by one, many at once, all the time
* `marks`           marks of pytest
* `waits`           waiting for what must happen, and for how many seconds
* `error_words`     what errors say and are called
* `logs`            what a server writes into its log, and what it must not
* `processes`       a server seen from outside: its processes, shared memory and open files
* `metrics_page`    its Prometheus page
* `metered_traffic` requests to a model with metrics, and what they add to that page
* `engine_limits`   what a check needs of the engine, and is untested without
* `alternate`       a second model on the shared server, as different as a model can be
* `extra_models`    further ones there: with adapters, for embeddings, pictures and pipelines
* `tiny_encoder`    the checkpoint that embeds, and what it embeds, computed independently
* `strict_server`   a server for checks that harm one, or that need other flags
* `record`          what an experiment has seen
* `experiments`     what is done once, for many checks

Checks share one server. What harms a server, needs one of its own or takes minutes is an
experiment: a script of steps, which is run once a session, when the first check asks for it. Many
checks read what it saw, so each of them has a verdict of its own at the price of one boot:

    experiments/plain_server.py   seen["exit code"] = handle.exit_code()
    conftest.py                   the session's fixture plain_life returns PlainLife(…).run()
    test_metrics.py               expect.equal("exit code", plain_life["exit code"], 0)

The experiment judges nothing, and never fails. `record.Seen` keeps its facts by name, and what went
wrong: that fails the checks that ask for what was not seen, or is their error where it is not the
backend's.

Another fact is a line in a step, and a check that reads it by the same words, which
tests/plugin/test_plugin_facts.py compares. Another experiment is a class in `experiments`, a
session's fixture that runs it, and that fixture's name in `conftest.EXPERIMENTS`, by which reports
find the logs of its servers.
"""
