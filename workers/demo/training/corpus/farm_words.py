"""The words of mlx-farm: what a job, a lane, a lease and the others are, and what happens when things die."""

from __future__ import annotations

from .farm_use import Topic


def _meaning(*names: str) -> tuple[str, ...]:
    """Return the ways to ask what a word means."""
    name = f"[{'|'.join(names)}]"
    return (
        f"what is {name}",
        f"what does {name} mean",
        f"what is meant by {name}",
        f"[explain|define|describe] {name}",
        f"what do you mean by {name}",
        f"what is {name} in [mlx-farm|the farm|this server]",
        f"what are {name}",
        f"meaning of {name}",
        f"what is {name} [for|good for|used for|here]",
        f"[explain|define] the [word|term] {name}",
        f"[what does|what is] the [word|term] {name} [mean|stand for]",
        f"why are there {name}",
        f"what is the [purpose|job|point|role|idea] of {name}",
        f"[tell me|i want to know more] about {name}",
    )


WORDS: tuple[Topic, ...] = (
    (
        _meaning("a job", "a job", "jobs", "job"),
        "A job is what the queue holds: one request for a model, with its state, its events and its result.",
    ),
    (
        (
            *_meaning("a lane", "a lane", "lanes", "lane", "the lane"),
            "[which|what] lanes are there",
            "how do priorities work",
            "how do i give a job [a high priority|priority]",
        ),
        "A lane is a priority: high, normal or low. Workers take jobs by lane and age, so no lane starves.",
    ),
    (
        (
            *_meaning("a lease", "a lease", "leases", "lease"),
            "why does a worker need a lease",
            "what happens when a lease [ends|expires]",
        ),
        "A lease is a worker's time-limited right to its jobs. When it ends, the jobs go back to the queue.",
    ),
    (
        (
            *_meaning("a worker", "a worker", "workers", "worker", "the worker"),
            "what does a worker do",
            "what do workers do",
        ),
        "A worker takes jobs from the queue, runs them through a model in one batch, and sends back the tokens.",
    ),
    (
        _meaning("an event", "an event", "events", "event"),
        "An event is a fact about a job that has happened, such as JobSubmitted or JobFinished.",
    ),
    (
        (*_meaning("the event log", "event sourcing", "an event log"), "why [does it use|do you keep] events"),
        "The event log holds every event of every job in order. The state of a job is computed from its events.",
    ),
    (
        (*_meaning("a block", "a block", "blocks", "block", "a kv block"),),
        "A block is a fixed number of tokens of KV cache. A sequence holds as many blocks as it needs.",
    ),
    (
        (*_meaning("a tenant", "a tenant", "tenants", "tenant"), "who owns [a job|the keys]"),
        "A tenant owns keys, quotas and jobs: a team or a customer, for example.",
    ),
    (
        (*_meaning("a projection", "a projection", "projections", "projection", "the projector", "a projector"),),
        "A projection is a table computed from events. The projector reads the event log and writes it to SQL.",
    ),
    (
        _meaning("an attempt", "attempts", "attempt"),
        "An attempt is one run of a job by one worker.",
    ),
    (
        _meaning("a sequence", "sequences", "sequence"),
        "A sequence is a prompt that is being generated in the engine.",
    ),
    (
        _meaning("a chunk", "chunks", "chunk"),
        "A chunk is a piece of text, with its token ids, that comes out of the engine.",
    ),
    (
        (*_meaning("a route", "routes", "route", "routing"), "how are requests routed"),
        "A route is the decision which backend serves a job: a local model or a cloud provider.",
    ),
    (
        _meaning("a provider", "providers", "provider"),
        "A provider is a cloud backend that can serve a job instead of a local model.",
    ),
    (
        _meaning("a prompt", "prompts", "prompt"),
        "A prompt is the text that goes into the engine.",
    ),
    (
        _meaning("a token", "tokens", "token"),
        "A token is a small piece of text, often a part of a word. A model reads and writes tokens.",
    ),
    (
        (*_meaning("the planner", "a planner", "planner"), "what does the planner do"),
        "The planner decides what the engine computes in its next step.",
    ),
    (
        (*_meaning("the scheduler", "a scheduler", "scheduler"), "what does the scheduler do"),
        "The scheduler decides the life of a job: its states, lanes, leases, routing and quotas.",
    ),
    (
        (*_meaning("the engine", "an engine", "engine"), "what does the engine do"),
        "The engine generates text with continuous batching and a paged KV cache. It knows no jobs and no HTTP.",
    ),
    (
        (*_meaning("a batch", "batches", "batch"),),
        "A batch is a file of requests, one for each line, that runs as jobs of its own.",
    ),
    (
        (*_meaning("continuous batching", "batching"), "how does batching work"),
        "Continuous batching lets many sequences share each step of the model; new ones join at any step.",
    ),
    (
        _meaning("the kv cache", "a kv cache", "kv cache", "paged kv", "the paged kv cache"),
        "The KV cache keeps what the model has already computed for earlier tokens. It is cut into blocks.",
    ),
    (
        _meaning("a prefix cache", "the prefix cache", "prefix caching"),
        "The prefix cache keeps blocks of earlier prompts, so that a prompt with the same start is ready sooner.",
    ),
    (
        _meaning("sse", "server-sent events", "streaming"),
        "Server-sent events carry tokens to the client one by one over HTTP, while the model still works.",
    ),
    (
        (*_meaning("redis", "valkey"), "why do you need redis", "what is redis for"),
        "Redis, or Valkey, holds the queue, the event log and the tokens until they are written to SQL or expire.",
    ),
    (
        _meaning("mlx", "apple mlx"),
        "MLX is Apple's library for machine learning on Apple Silicon. The workers run models with it.",
    ),
    (
        _meaning("a webhook", "webhooks"),
        "A webhook is a call to your URL when a job has ended. It is signed.",
    ),
    (
        _meaning("a quota", "quotas", "a rate limit", "rate limits"),
        "A quota limits what a tenant may use. Over the limit the server answers 429 and says when to retry.",
    ),
    (
        (*_meaning("lora", "speculative decoding", "quantization"),),
        "That is a technique of real models. I am too small to explain it well.",
    ),
    (
        (
            "what happens [when|if] a worker [crashes|dies|fails|is killed|goes down|stops|disappears]",
            "what if a worker [crashes|dies|fails|is killed|goes away]",
            "what happens [on|after] a [crash|worker crash]",
            "do i lose [my job|tokens|work|requests] [when|if] a worker [crashes|dies|is killed]",
            "[a|my|the] worker [crashed|died|was killed], what now",
            "is my job lost if [the worker|a worker|the process] [dies|crashes]",
        ),
        "Its lease ends and its jobs go back to the front of the queue. Another worker goes on from the last token: "
        "you see a pause, and nothing is lost or said twice.",
    ),
    (
        (
            "what happens [when|if] [a worker|the worker|the model] [hangs|is stuck|freezes]",
            "what if a worker [hangs|is stuck|freezes]",
        ),
        "Its watchdog ends the process when no step finishes in time, and the jobs go back to the queue.",
    ),
    (
        (
            "what happens [when|if] redis [is down|dies|crashes|fails|stops]",
            "what if redis [is down|dies|crashes|fails]",
        ),
        "New requests get a 503 with Retry-After. Streams go on when Redis is back.",
    ),
    (
        (
            "what happens [when|if] [the database|sql|postgres|sqlite] [is down|dies|fails|stops]",
            "what if [the database|sql|postgres] [is down|dies|fails]",
        ),
        "The projector waits and catches up later. Requests are served as before.",
    ),
    (
        (
            "what happens [when|if] [the client|a client|my browser] [leaves|disconnects|goes away|closes]",
            "what if [the client|a client] [leaves|disconnects|goes away]",
            "what happens if i close [the connection|my laptop|the browser]",
        ),
        "The job is cancelled and its blocks are freed, or it runs on if its policy says so.",
    ),
    (
        (
            "what happens [when|if] memory [is short|runs out|is full]",
            "what if [memory|the memory] [is short|runs out|is full]",
            "what happens when [there is no memory left|we run out of memory]",
        ),
        "The planner pauses the youngest sequence of the lowest lane and resumes it later.",
    ),
    (
        (
            "[which|what] states [can a job have|does a job have|are there|can a job be in]",
            "what are the states of a job",
            "what is the state of a job",
            "list the [job states|states of a job]",
        ),
        "A job is queued, running, delayed, finished, failed, cancelled, expired or dead.",
    ),
    (
        (
            "what is a [dead|poisoned|poison] job",
            "when is a job dead",
            "what does dead mean",
        ),
        "A dead job is one whose workers died again and again. It is kept and listed, and you can retry it by hand.",
    ),
)
