"""A vLLM backend for Triton: requests go to vLLM's asynchronous engine, vLLM does the batching.

Nothing is imported here, so that Triton's auto-complete pass, which only needs `tensors`, stays
cheap. The modules, each with one duty:

* `tensors`           the tensors of a model, with which config.pbtxt is completed
* `parameters`        what config.pbtxt says to this backend
* `model_files`       model.json and multi_lora.json
* `settings`          all of these, read for one load
* `placement`         which GPUs an instance uses, and whether instances share an engine
* `requests`          one Triton request -> one frozen value
* `sampling`          client values -> vLLM's SamplingParams, through vLLM's own type hints
* `engine_limits`     what an engine cannot hold of one request, which is refused before
* `images`            base64 texts and data: URLs -> PIL images
* `lora`              adapters: names -> ids of vLLM's, new ones where files have changed
* `responses`         vLLM outputs -> response tensors
* `streams`           the FIFO of one request, and the threads that send
* `event_loop`        the engine's asyncio loop and its thread
* `live_requests`     the requests between submission and last response
* `cancellation`      looks for clients that have given up
* `runner`            the way of each request into the engine and out of it; drain
* `service`           puts the parts together at load, and takes them apart
* `adapter`           the only module that imports vLLM
* `sharing`           several instances in front of one engine (SHARED_ENGINE)
* `watchdog`          no engine process outlives the stub, however the stub dies
* `parent_server`     what the stub can find out about its tritonserver
* `shared_references` which processes share Triton's metrics; the last one frees them
* `metric_families`   which metrics there are
* `stats`             vLLM's statistics, summed up until they are sent
* `metrics`           sends them to Triton
* `stats_relay`       their way from vLLM to there
* `errors`            what is said of what goes wrong, each with its code of Triton's
"""
