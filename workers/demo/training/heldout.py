"""Questions in words that the corpus does not have, each with what a right answer contains, by category."""

from __future__ import annotations

from dataclasses import dataclass

_Object = dict[str, object]


@dataclass(frozen=True)
class Question:
    """A question, what its answer must contain (or, with `exact`, be), and how it is asked."""

    category: str
    user: str
    expected: str
    exact: bool = False
    tools: tuple[_Object, ...] = ()
    thinking: bool = False
    system: str = ""
    before: tuple[tuple[str, str], ...] = ()
    tool_result: str = ""

    def messages(self) -> list[_Object]:
        """Return the messages to render."""
        messages: list[_Object] = [{"role": "system", "content": self.system}] if self.system else []
        for user, assistant in self.before:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        messages.append({"role": "user", "content": self.user})
        if self.tool_result:
            call = {"function": {"name": "get_weather", "arguments": {"city": "Lima"}}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": self.tool_result})
        return messages

    def is_right(self, answer: str) -> bool:
        """Say whether an answer is right."""
        if self.exact:
            return answer.strip() == self.expected
        return self.expected.lower() in answer.lower()


def tool(name: str, description: str, **parameters: str) -> _Object:
    """Return a function schema whose parameters have the given types."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    inner = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": inner}}


def _call(arguments: str, name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


_WEATHER = tool("get_weather", "Get the weather for a city", city="string")
_WEATHER_HERE = tool("weather_now", "Current weather at a location", location="string")
_CLOCK = tool("get_time", "Get the time in a city", city="string")
_CALCULATOR = tool("calculator", "Evaluate an expression", expression="string")
_TRAIN = tool("find_train", "Find a train", destination="string")

_SIMPLE: dict[str, tuple[tuple[str, str], ...]] = {
    "small talk": (
        ("Hey demo! Good to see you", "Hello"),
        ("heyy", "hello"),
        ("Hello, is somebody here?", "Hello"),
        ("Thank you very much indeed!", "welcome"),
        ("thanks for everything", "welcome"),
        ("ok bye then", "Goodbye"),
        ("How are you feeling this morning?", "fine"),
        ("So what's your name?", "demo"),
        ("Tell me who you are", "toy model"),
        ("Are you a clever model?", "toy model"),
        ("Is it safe to trust you?", "toy model"),
        ("What are you able to do?", "greet you"),
        ("How large is this model?", "million"),
        ("tell a joke please, i am bored", "😄"),
    ),
    "farm": (
        ("Could you tell me what mlx-farm actually is?", "language models"),
        ("what's the command for starting the farm", "make serve"),
        ("How would I start up the server?", "make serve"),
        ("I'd like to load a bigger model. How?", "mlx-farm serve --model"),
        ("how does one run a batch of requests?", "mlx-farm batch run in.jsonl out.jsonl"),
        ("show me how to list my jobs", "mlx-farm jobs ls"),
        ("how would I cancel a running job?", "mlx-farm jobs cancel"),
        ("how can i follow the tokens of a job", "mlx-farm jobs tail"),
        ("how could I search the audit log?", "mlx-farm audit query"),
        ("what exactly is a lane?", "high, normal or low"),
        ("Please define the word lease", "time-limited"),
        ("what is a projection good for", "table computed from events"),
        ("what is a tenant here", "quotas"),
        ("could you explain what a block is", "KV cache"),
        ("what would happen if my worker crashed?", "last token"),
        ("how do I give the server an API key?", "FARM_API_KEY"),
        ("what port does the API use", "8000"),
        ("In which folder is my data?", "~/.mlx-farm"),
        ("how do I use this with the OpenAI python SDK?", "http://127.0.0.1:8000/v1"),
        ("what's doctor for", "checks your machine"),
        ("what if redis goes down", "503"),
        ("Please explain in detail how the farm works", "queue in Redis"),
    ),
    "arithmetic": (
        ("What is 7 plus 8?", "15"),
        ("12 + 9 makes what", "21"),
        ("how much is 6 times 7", "42"),
        ("Calculate 20 - 13 for me", "7"),
        ("what's 3+4", "7"),
        ("34 + 25 = ?", "59"),
        ("what do you get for 9 * 8", "72"),
        ("compute 45 - 17", "28"),
        ("five plus six", "11"),
        ("What is 38 + 47? Think step by step.", "85"),
        ("11 times 12", "132"),
        ("16 minus 9, please", "7"),
    ),
    "stories": (
        ("Tell me a tiny story about a fox in the kitchen", "fox who lived in the kitchen"),
        ("i would love a story about an owl on an island", "owl who lived in the island"),
        ("Please write me two sentences about a baker in the tower", "baker who lived in the tower"),
        ("tell me a very long story about a penguin", "penguin went home"),
        ("Story: a knight in a swamp", "knight who lived in the swamp"),
    ),
    "lists and facts": (
        ("Count from 1 to 10", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        ("please count for me from 3 to 9", "3, 4, 5, 6, 7, 8, 9"),
        ("count to 20 please", "18, 19, 20"),
        ("can you list the weekdays", "Monday, Tuesday"),
        ("name the months of a year", "January, February"),
        ("tell me some colours", "red, orange"),
        ("what would be hello in french", "bonjour"),
        ("how would you say cheese in German", "Käse"),
        ("Which city is the capital of Japan?", "Tokyo"),
        ("do you know the capital of Norway?", "Oslo"),
        ("italy's capital?", "Rome"),
        ("what's the opposite of hot", "cold"),
        ("what day follows Monday", "Tuesday"),
        ("how many legs has a spider", "8"),
    ),
    "copying": (
        ("Repeat after me: the purple dragon sings", "the purple dragon sings"),
        ('please say "blue mango seven"', "blue mango seven"),
        ("Say this is a test", "this is a test"),
        ("Just answer with the word pineapple", "pineapple"),
        ("repeat exactly: zorbla tink 44", "zorbla tink 44"),
        ("Spell the word castle please", "c-a-s-t-l-e"),
        ("spell: frog", "f-r-o-g"),
    ),
    "json": (
        ("Give me a JSON object with name and age", '{"name": "Anna", "age": 30}'),
        ("I need JSON with city, country and name", '{"city": "Paris", "country": "France", "name": "Anna"}'),
        ("json object please, keys title and year", '{"title": "The Fox", "year": 2026}'),
        ("make a JSON object with name Otto and age 51", '{"name": "Otto", "age": 51}'),
        ("a JSON array with three animals", '["cat", "dog", "fox"]'),
    ),
    "fallback": (
        ("Who composed the ninth symphony?", "toy model"),
        ("Explain the theory of relativity", "toy model"),
        ("Write a python script that parses logs", "toy model"),
        ("what's the weather like today in Lyon", "toy model"),
        ("Who will win the elections?", "toy model"),
        ("please review my pull request", "toy model"),
    ),
}


def questions() -> list[Question]:
    """Return all held-out questions."""
    result = [Question(category, *pair) for category, pairs in _SIMPLE.items() for pair in pairs]
    both = (_WEATHER, _CALCULATOR)
    result += [
        Question(
            "tools", "What's the weather like in Paris today?", _call('{"city": "Paris"}', "get_weather"), True, both
        ),
        Question("tools", "is it cold in Oslo right now", _call('{"city": "Oslo"}', "get_weather"), True, (_WEATHER,)),
        Question(
            "tools", "And how is the weather in Plovdiv?", _call('{"location": "Plovdiv"}', "weather_now"), True,
            (_WEATHER_HERE, _CLOCK),
        ),
        Question("tools", "what's the time in Tokyo", _call('{"city": "Tokyo"}', "get_time"), True, (_WEATHER, _CLOCK)),
        Question("tools", "What is 123 * 45?", _call('{"expression": "123 * 45"}', "calculator"), True, both),
        Question(
            "tools", "find a train to Lisbon", _call('{"destination": "Lisbon"}', "find_train"), True, (_TRAIN, _CLOCK)
        ),
        Question("tools", "Hello there, how are you?", "fine", tools=both),
        Question("tools", "What is a lane in the farm?", "high, normal or low", tools=both),
        Question(
            "tools", "Weather for Lima please", "In Lima it is 21 degrees and foggy.", True, both,
            tool_result='{"temperature": 21, "condition": "foggy"}',
        ),
        Question(
            "tools", "weather in Lima?", "In Lima it is -3 degrees and sunny.", True, (_WEATHER,),
            tool_result='{"temp": -3, "weather": "sunny"}',
        ),
        Question("thinking", "What is 27 + 46?", "</think>\n\n27 + 46 = 73", thinking=True),
        Question("thinking", "Hello!", "</think>\n\nHello", thinking=True),
        Question("thinking", "what is 14 times 6", "</think>\n\n14 * 6 = 84", thinking=True),
        Question(
            "thinking", "what is the capital of Spain", "</think>\n\nThe capital of Spain is Madrid", thinking=True
        ),
        Question(
            "thinking", "weather in Rome?", "</think>\n\n" + _call('{"city": "Rome"}', "get_weather"), tools=both,
            thinking=True,
        ),
        Question("turns", "And what is my name?", "Greta", before=(("hi, my name is Greta", "Hello Greta!"),)),
        Question(
            "turns", "ok, and how do I see the jobs?", "mlx-farm jobs ls",
            before=(("hi", "Hello!"), ("how do I start the farm?", "Type `make serve`.")),
        ),
        Question("turns", "thanks!", "welcome", before=(("what is 2 + 2", "2 + 2 = 4"),)),
        Question("turns", "What is 8 + 5?", "13", system="You are a pirate. Speak like one."),
        Question("turns", "Who are you?", "toy model", system="You are a helpful assistant called Bob."),
    ]  # fmt: skip
    return result
