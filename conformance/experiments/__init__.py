"""Scripted experiments on servers. Each is done once a session; several checks read what it saw.

* `second_model`    a second model on the shared server, from a load that fails to its last unload
* `plain_server`    a server as the README starts one, until SIGTERM
* `bare_server`     a server without metrics page and control API, until its engine dies
* `deaths`          every process of the strict server is killed, one after another
* `placement`       models on several GPUs, placed in every way that there is
* `shared_host`     no experiment, but a step of two: two servers on one host, both under load
"""
