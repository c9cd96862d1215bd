"""How mlx-farm is used: starting it, models, batches, jobs, keys, ports, data, clients."""

from __future__ import annotations

Topic = tuple[tuple[str, ...], str]

USE: tuple[Topic, ...] = (
    (
        (
            "what is [mlx-farm|mlx farm|the farm|this farm|mlxfarm|this server|this project|this software]",
            "what does [mlx-farm|the farm|this server|mlx farm] do",
            "what is [mlx-farm|the farm] [for|good for|used for]",
            "explain [mlx-farm|the farm|mlx farm] [briefly|in short|in one sentence|to me|]",
            "what am i [using|running] here",
            "[describe|summarise|summarize|introduce] [mlx-farm|the farm]",
            "[mlx-farm|mlx farm]",
        ),
        "mlx-farm serves language models on one Mac or on many. Every request becomes a job in an event log, and "
        "workers pull jobs from a queue.",
    ),
    (
        (
            "explain [mlx-farm|the farm|mlx farm] in [detail|depth|full|many words]",
            "[give me a|write a] [long|detailed|full] [explanation|description] of [mlx-farm|the farm]",
            "how does [mlx-farm|the farm|it all|mlx farm|this server|the server] work[| inside| in detail]",
            "what happens [to|with] [a|my] request[| inside the farm| in the farm]",
            "tell me everything about [mlx-farm|the farm|mlx farm]",
            "describe [mlx-farm|the farm|the architecture] in detail",
            "how is [mlx-farm|the farm] built",
            "what is the architecture[| of mlx-farm| of the farm]",
        ),
        "mlx-farm serves language models on Apple Silicon, and on Linux too. A request comes in over HTTP. The API "
        "turns it into a job and puts it on a queue in Redis. A worker takes jobs by lane and puts them into one "
        "batch: in each step every job in the batch gets a token. The tokens go back as server-sent events, so you "
        "see the answer grow. Each change of a job is an event, and a projector writes the events to SQL, where you "
        "can query them. If a worker dies, another one goes on from the last token, so a crash is only a pause.",
    ),
    (
        (
            "how [do|can|should] i [start|run|launch|boot|bring up] "
            "[mlx-farm|the farm|the server|it|mlx farm|this server]",
            "how to [start|run|launch] [mlx-farm|the farm|the server|mlx farm]",
            "[start|run|launch] [mlx-farm|the farm|the server]",
            "[which|what] command [starts|runs|launches] [mlx-farm|the farm|the server]",
            "how do i get [started|going]",
            "what is make serve",
            "how do i [begin|get the server running]",
            "starting the [server|farm]",
        ),
        "Type `make serve` in the repository, or `mlx-farm serve`. The server then listens on http://127.0.0.1:8000.",
    ),
    (
        (
            "how [do|can] i [stop|shut down|quit|end] [mlx-farm|the farm|the server]",
            "how to [stop|shut down|quit] [mlx-farm|the farm|the server]",
        ),
        "Press Ctrl-C in the terminal of `mlx-farm serve`. Running jobs stay in the queue and go on at the next start.",
    ),
    (
        (
            "how [do|can] i [load|use|run|serve|try|choose|get] [another|a different|a real|a better|a bigger|my own"
            "|a larger] model",
            "how to [load|use|run|serve] [another|a different|a real|a better|a bigger] model",
            "[load|use|switch to] [another|a better|a real|a different] model",
            "how do i [change|switch] [the model|models]",
            "can i use [another|a real|a better|my own|a bigger] model",
            "[which|what] model should i use",
            "how do i serve [qwen|llama|mistral|gemma]",
        ),
        "Start the farm with it: `mlx-farm serve --model NAME`. While it runs, `mlx-farm load NAME` loads one more.",
    ),
    (
        (
            "how [do|can] i [download|pull|fetch|get] [a|the|new] [model|models|weights]",
            "how to [download|pull] a model",
            "what does mlx-farm pull do",
        ),
        "`mlx-farm pull NAME` downloads a model. `mlx-farm ls` then lists it.",
    ),
    (
        (
            "how [do|can] i [see|list|show] [the|all|my] models",
            "[which|what] models [are there|do you have|are available|can i use|are loaded|are installed]",
            "list [the|all|my] models",
            "what does mlx-farm ls do",
        ),
        "`mlx-farm ls` lists the models on this machine, and `mlx-farm ps` shows those that are loaded.",
    ),
    (
        (
            "how [do|can] i [unload|remove|delete] a model",
            "how to [unload|remove|delete] a model",
            "[unload|remove|delete] a model",
        ),
        "`mlx-farm unload NAME` frees its memory; `mlx-farm rm NAME` deletes its files.",
    ),
    (
        (
            "how [do|can] i [chat|talk] [with|to] a model[| in the terminal]",
            "how do i [ask|try] a model [in the terminal|from the command line|on the command line]",
            "what does mlx-farm run do",
        ),
        "`mlx-farm run NAME` opens a chat in the terminal. With a prompt behind it, it answers once.",
    ),
    (
        (
            "how [do|can] i [run|start|submit|do|make|process] "
            "[a batch|batches|a batch job|an overnight batch|batch jobs]",
            "how to run a batch",
            "[run|start] a batch",
            "what does mlx-farm batch do",
            "how do [batches|batch files] work",
            "can i [process|run] [many|1000|100000|a lot of] [prompts|requests|lines][| at once| over night]",
            "how do i process a [jsonl|json lines] file",
            "i have a file [of|with] [prompts|requests], what now",
        ),
        "Use `mlx-farm batch run in.jsonl out.jsonl`: each line of the first file is a request, each line of the "
        "second its answer. A bad line fails alone.",
    ),
    (
        (
            "how [do|can] i [see|list|show|view|find|watch] [jobs|my jobs|the jobs|all jobs|the queue|running jobs]",
            "how to [see|list|show] [jobs|the jobs|all jobs]",
            "[list|show|see] [the|my|all] jobs",
            "where [do i see|can i see|are] [the|my] jobs",
            "[which|what] jobs are [running|there|waiting]",
            "what does mlx-farm jobs [do|ls do]",
        ),
        "`mlx-farm jobs ls` lists the jobs, and `mlx-farm jobs get ID` shows one of them.",
    ),
    (
        (
            "how [do|can] i [tail|follow|stream|watch] [a job|one job|my job|the output of a job]",
            "how to [tail|follow|watch] a job",
            "[tail|follow] a job",
            "[what is|what does] jobs tail[| do]",
        ),
        "`mlx-farm jobs tail ID` prints a job's tokens as they come.",
    ),
    (
        (
            "how [do|can] i [cancel|stop|abort|kill|end] [a job|one job|my job|a running job|a request]",
            "how to [cancel|abort|stop] a job",
            "[cancel|abort|stop] a job",
            "can a job be [cancelled|stopped|aborted]",
        ),
        "`mlx-farm jobs cancel ID` cancels a job in any state. A job that has finished stays as it is.",
    ),
    (
        (
            "how [do|can] i [retry|repeat|restart|rerun] [a|a failed|a dead] job",
            "how to [retry|rerun] a [|failed |dead ]job",
            "retry a [|failed |dead ]job",
        ),
        "`mlx-farm jobs retry ID` puts a failed or dead job back into the queue.",
    ),
    (
        (
            "how [do|can] i [query|search|read|see|use] the [audit log|audit|log|history|record]",
            "what is the audit log",
            "how to query the audit log",
            "what does mlx-farm audit do",
            "where [do i see|can i see] what happened",
            "is there [an audit log|a log|a history] of [requests|all requests]",
            "how do i see [past|old|yesterday's] requests",
            "can i use sql[| on the log| to see requests]",
        ),
        "`mlx-farm audit query` asks the audit log, and `mlx-farm audit export` writes it to a file. It lies in SQL, "
        "one row for each job.",
    ),
    (
        (
            "how [do|can] i [set|use|configure|pass|give|add] [an|the|my] api key",
            "how to set [an|the] api key",
            "[where does the api key go|do i need an api key|what is farm_api_key|what is FARM_API_KEY]",
            "how do i [protect|secure] [the server|the farm|it|my server]",
            "[which|what] variable [holds|sets] the api key",
            "set [an|the] api key",
        ),
        "Set FARM_API_KEY before the start, for example `FARM_API_KEY=secret mlx-farm serve`. Clients then send it "
        "as a bearer token.",
    ),
    (
        (
            "how [do|can] i [create|make|revoke|list] [keys|more keys|a key|a new key|api keys]",
            "how to create [a key|keys|api keys]",
            "what does mlx-farm keys do",
        ),
        "`mlx-farm keys create` makes a key for a tenant; `mlx-farm keys ls` and `mlx-farm keys revoke` do the rest.",
    ),
    (
        (
            "[which|what] [port|ports|address|url] [does|do] "
            "[the farm|it|you|mlx-farm|the server] [use|listen on|have]",
            "what is the [port|address|url][| of the server| of the farm]",
            "where does [the server|the farm|it] listen",
            "on which port [are you|is the server]",
            "[can i|how do i] change the port",
            "what port",
        ),
        "The API listens on 127.0.0.1, port 8000. Another port: `mlx-farm serve --port 9000`.",
    ),
    (
        (
            "where [is|are] "
            "[my data|the data|the files|the database|everything|my files|the logs] [kept|stored|saved|]",
            "where does [mlx-farm|the farm|it] [keep|store|save|put] [its|my|the] [data|files]",
            "what is [farm_home|FARM_HOME]",
            "[which|what] [folder|directory] [holds|has] [the|my] data",
            "where is the [data|home] [folder|directory]",
            "how do i move the data[| somewhere else]",
        ),
        "Data lies in ~/.mlx-farm. Set FARM_HOME to use another folder.",
    ),
    (
        (
            "how [do|can] i use "
            "[the openai sdk|openai|the openai client|the openai library|python|the openai python sdk]"
            "[| with it| with you| with the farm| with mlx-farm]",
            "what is the base url",
            "[what|which] base_url [do i use|should i use|is it|do i set]",
            "how do i connect [the openai sdk|openai|my client|my app|a client]",
            "[is it|are you|is the farm] compatible with openai",
            "[does it|does the farm] [speak|support|have] the openai api",
            "can i use [openai|the openai sdk|the openai api][| here]",
        ),
        'Point the SDK at the farm: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any"), then ask for the '
        "model demo.",
    ),
    (
        (
            "how [do|can] i use [the anthropic sdk|anthropic|claude code|the anthropic api][| with it| with the farm|]",
            "does [it|the farm] [speak|support|have] [the anthropic api|anthropic]",
            "can i use [claude code|the anthropic sdk|anthropic|codex]",
            "how do i connect [claude code|codex|the anthropic sdk]",
        ),
        "The farm also answers /v1/messages, so the anthropic SDK works with base_url http://127.0.0.1:8000. "
        "`mlx-farm launch claude` starts Claude Code with it.",
    ),
    (
        (
            "how [do|can] i use curl",
            "[show|give] me a curl [example|command|line]",
            "[is there a|what is the] curl [example|command]",
            "how do i [call|send a request to|ask] [the api|the server|you] [with curl|over http|from the shell|]",
        ),
        "curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' "
        '-d \'{"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}\'',
    ),
    (
        (
            "what is [doctor|mlx-farm doctor|the doctor|the doctor command]",
            "what does [doctor|mlx-farm doctor|the doctor|the doctor command] do",
            "how [do|can] i [check|test|diagnose] [my setup|my installation|the farm|my machine|the installation]",
            "something is [wrong|broken], what now",
            "[it|the server|the farm] does not [work|start|answer], what [now|can i do]",
            "[is there a|how do i do a] health check",
        ),
        "`mlx-farm doctor` checks your machine: Python, memory, MLX, Redis, the database, free ports and disk. It "
        "says what is wrong and what to do.",
    ),
    (
        (
            "how [do|can] i [measure|benchmark|test] [the speed|the farm|speed|performance|how fast it is]",
            "what does mlx-farm bench do",
            "how fast [is it|is the farm|are you]",
        ),
        "`mlx-farm bench` measures the speed on your machine.",
    ),
    (
        (
            "how [do|can] i [configure|change the settings of|set up|set options of] [mlx-farm|the farm|it|the server]",
            "where [are|do i put] [the settings|settings|options|the configuration]",
            "[is there a|where is the] [config|configuration|settings] [file|]",
            "what does mlx-farm config show[| do]",
        ),
        "Settings come from flags, then FARM_ variables, then ./farm.toml, then ~/.mlx-farm/config.toml. "
        "`mlx-farm config show` prints them.",
    ),
    (
        (
            "where is the [console|dashboard|web page|web interface|admin page|user interface]",
            "is there a [console|dashboard|web page|web interface|user interface|gui]",
            "how do i open the [console|dashboard]",
        ),
        "The console is at http://127.0.0.1:8000/console.",
    ),
    (
        (
            "where are the [metrics|statistics]",
            "[is there a|how do i use] prometheus[| endpoint]",
            "how [do|can] i [monitor|watch] [the farm|the server|it]",
            "is there a metrics [endpoint|page]",
        ),
        "Metrics for Prometheus are at /metrics, and /health says how loaded the server is.",
    ),
    (
        (
            "[which|what] version [is this|are you|do i have|of mlx-farm is this]",
            "how do i [see|find] the version",
            "what does mlx-farm version do",
        ),
        "`mlx-farm version` prints the version.",
    ),
    (
        (
            "[which|what] commands [are there|does mlx-farm have|does it have|do you know|can i use]",
            "list [the|all] commands",
            "what commands are there",
            "how do i get help [on|for] the command line",
        ),
        "Some commands: `mlx-farm serve`, `run`, `pull`, `ls`, `load`, `jobs`, `batch`, `audit`, `keys`, `bench` and "
        "`doctor`. Each has --help.",
    ),
    (
        (
            "does [it|the farm|mlx-farm] [run|work] on [linux|nvidia|a pc|cuda|a gpu|intel|windows]",
            "[which|what] [machines|computers|hardware|platforms] "
            "[does it run on|does it need|do i need|are supported]",
            "do i need a [mac|gpu|apple silicon mac]",
            "does it need [a gpu|a mac|apple silicon]",
        ),
        "mlx-farm is made for Apple Silicon Macs. It also runs on Linux, with a CPU or an NVIDIA GPU.",
    ),
)
